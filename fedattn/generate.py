"""Replies and scores: generation, bits per byte, what a reply attended to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fedattn.batches import IGNORED, Pair, Record, collate, pair
from fedattn.growing import growing_reply
from fedattn.model import Attention, AttentionGenerator
from fedattn.sampling import GREEDY, Sampling
from fedattn.tokens import Tokenizer


@dataclass(frozen=True)
class Quality:
    """Bits per byte over `examples` replies of `bytes` bytes in all."""

    bpb: float
    examples: int
    bytes: int


@dataclass(frozen=True)
class Reply:
    """A generated reply, its token ids, and where each token looked."""

    text: str
    ids: tuple[int, ...]
    attention: Attention


# What a run shows replies to. Written by us: no person's words enter a report.
OPENERS = (
    "hi, how are you doing today?",
    "what do you like to do on the weekend?",
    "i have a big exam tomorrow and i am nervous.",
    "do you have any pets?",
    "what is your favorite movie?",
    "where are you from?",
)


def context_of(turns: Sequence[str], tokenizer: Tokenizer, context_tokens: int) -> list[int]:
    """The context ids of a chat whose last turn is the other's: <you> and <me> take turns."""
    ids: list[int] = []
    for distance, text in enumerate(reversed(turns)):
        marker = tokenizer.me if distance % 2 else tokenizer.you
        ids[:0] = [marker, *tokenizer.encode(text)]
    return ids[-context_tokens:]


def reply_to(
    model: AttentionGenerator, tokenizer: Tokenizer, turns: Sequence[str], max_tokens: int = 40
) -> Reply:
    """The greedy reply to the last of `turns`, which two speakers took in turn."""
    context = context_of(turns, tokenizer, model.shape.context_tokens)
    return reply(model, tokenizer, context, max_tokens=max_tokens)


@torch.no_grad()
def reply(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    context: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
) -> Reply:
    """The reply to `context` token ids, at most `max_tokens` long; greedy unless told.

    Special tokens other than <eos> are never generated, nor an <eos> before any text.
    """
    growing = growing_reply(
        model, tokenizer, context, max_tokens=max_tokens, sampling=sampling, seed=seed
    )
    for _ in growing:
        pass
    device = next(model.parameters()).device
    _, attention = model.attend(
        torch.tensor([list(context)], device=device),
        torch.tensor([[tokenizer.bos, *growing.ids]], device=device),
    )
    return Reply(growing.text, growing.ids, attention)


def choose_pairs(
    records: Sequence[Record], tokenizer: Tokenizer, context_tokens: int, count: int, label: str
) -> list[Pair]:
    """At most `count` examples of `records`, chosen by hash: the same ones in every run."""
    places = [(row, index) for row, record in enumerate(records) for index in record.replies]
    places.sort(key=lambda place: hashlib.sha256(f"{label}/{place}".encode()).digest())
    return [pair(records[row], index, tokenizer, context_tokens) for row, index in places[:count]]


@torch.inference_mode()
def bits_per_byte(
    model: AttentionGenerator, pairs: Sequence[Pair], tokenizer: Tokenizer, *, places: int = 2048
) -> Quality:
    """Bits that the model needs for the whole replies and their ends, per byte of their text.

    Every reply is scored in full, whatever length training cut replies to. Examples of alike
    lengths are computed together, up to `places` tokens of context and reply, padding included;
    nats are float32, their sum float64. No examples: NaN.
    """
    device = next(model.parameters()).device
    nats, size = 0.0, 0
    for group in _alike(pairs, places):
        data = collate(group, tokenizer).to(device)
        logits = model(data.context, data.tokens)
        each = F.cross_entropy(
            logits.flatten(0, 1).float(),
            data.targets.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        nats += float(each.sum(dtype=torch.float64))
        size += sum(len(tokenizer.decode(item.reply).encode()) for item in group)
    return Quality(nats / math.log(2) / size if size else math.nan, len(pairs), size)


def _alike(pairs: Sequence[Pair], places: int) -> Iterator[list[Pair]]:
    """All of `pairs`, those of alike lengths together: at most `places` in a group, or one pair."""
    group: list[Pair] = []
    width = 0
    for item in sorted(pairs, key=lambda each: (len(each.reply), len(each.context))):
        wider = max(width, len(item.context))  # (no reply so far was longer than this one)
        if group and (len(group) + 1) * (wider + len(item.reply)) > places:
            yield group
            group, wider = [], len(item.context)
        group.append(item)
        width = wider
    if group:
        yield group
