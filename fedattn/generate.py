"""Replies and scores: greedy generation, bits per byte, what a reply attended to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fedattn.batches import IGNORED, Pair, Record, collate, pair
from fedattn.model import Attention, AttentionGenerator
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
    model: AttentionGenerator, tokenizer: Tokenizer, context: Sequence[int], *, max_tokens: int
) -> Reply:
    """The greedy reply to `context` token ids, at most `max_tokens` long.

    Special tokens other than <eos> are never generated, nor an <eos> before any text.
    """
    device = next(model.parameters()).device
    memory = model.encode(torch.tensor([list(context)], device=device))
    tokens = [tokenizer.bos]
    barred = [tokenizer.pad, tokenizer.bos, tokenizer.me, tokenizer.you]
    for step in range(max_tokens):
        logits = model.decode(memory, torch.tensor([tokens], device=device))[0, -1]
        logits[barred] = -math.inf
        if step == 0:
            logits[tokenizer.eos] = -math.inf
        best = int(logits.argmax())
        if best == tokenizer.eos:
            break
        tokens.append(best)
    _, attention = model.attend(
        torch.tensor([list(context)], device=device), torch.tensor([tokens], device=device)
    )
    return Reply(tokenizer.decode(tokens[1:]).strip(), tuple(tokens[1:]), attention)


def choose_pairs(
    records: Sequence[Record], tokenizer: Tokenizer, context_tokens: int, count: int, label: str
) -> list[Pair]:
    """At most `count` examples of `records`, chosen by hash: the same ones in every run."""
    places = [(row, index) for row, record in enumerate(records) for index in record.replies]
    places.sort(key=lambda place: hashlib.sha256(f"{label}/{place}".encode()).digest())
    return [pair(records[row], index, tokenizer, context_tokens) for row, index in places[:count]]


@torch.no_grad()
def bits_per_byte(
    model: AttentionGenerator, pairs: Sequence[Pair], tokenizer: Tokenizer, *, batch: int = 64
) -> Quality:
    """Bits that the model needs for the whole replies and their ends, per byte of their text.

    Every reply is scored in full, whatever length training cut replies to. No examples: NaN.
    """
    device = next(model.parameters()).device
    order = sorted(pairs, key=lambda item: (len(item.reply), len(item.context)))
    nats, size = 0.0, 0
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        data = collate(group, tokenizer).to(device)
        logits = model(data.context, data.tokens)
        nats += float(
            F.cross_entropy(
                logits.flatten(0, 1).float(),
                data.targets.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
        )
        size += sum(len(tokenizer.decode(item.reply).encode()) for item in group)
    return Quality(nats / math.log(2) / size if size else math.nan, len(order), size)
