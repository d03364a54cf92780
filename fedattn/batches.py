"""From dialogues to tensors: tokenised records, drawn examples, padded batches.

A record is one conversation, tokenised once. An example is one of its replies with the turns
before it; every turn of the context starts with <me> (the reply's speaker) or <you> (another).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedattn.data import Dialogue
from fedattn.data.filters import is_example
from fedattn.tokens import Tokenizer

IGNORED = -100  # target of a padded place; F.cross_entropy's own default


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """One conversation as token ids: `turns[i]` was said by `speakers[i]`; prints no content."""

    speakers: tuple[int, ...]
    turns: tuple[tuple[int, ...], ...]
    replies: tuple[int, ...]  # indices of the turns to learn from

    def __repr__(self) -> str:
        return "Record(<omitted>)"


class Pair(NamedTuple):
    """A context and its reply as token ids, without padding."""

    context: list[int]
    reply: list[int]


@dataclass(frozen=True, slots=True, repr=False)
class Batch:
    """Left-padded contexts (B, S), reply inputs (B, T) from <bos>, targets (B, T); int64."""

    context: Tensor
    tokens: Tensor
    targets: Tensor

    def __repr__(self) -> str:
        return "Batch(<omitted>)"

    def __len__(self) -> int:
        return self.context.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; the CPU need not wait for a copy to a CUDA device."""
        parts = (self.context, self.tokens, self.targets)
        return Batch(*(part.to(device, non_blocking=device.type == "cuda") for part in parts))


def tokenize(
    dialogues: Iterable[Dialogue], tokenizer: Tokenizer, max_reply_bytes: int
) -> list[Record]:
    """One record a dialogue, in order; a dialogue without a usable reply has empty `replies`."""
    dialogues = list(dialogues)
    texts = [turn.text for dialogue in dialogues for turn in dialogue.turns]
    ids = iter(tokenizer.encode_batch(texts))
    records = []
    for dialogue in dialogues:
        names = {name: number for number, name in enumerate(dialogue.speakers)}
        records.append(
            Record(
                speakers=tuple(names[turn.speaker] for turn in dialogue.turns),
                turns=tuple(tuple(next(ids)) for _ in dialogue.turns),
                replies=tuple(
                    index
                    for index in range(1, len(dialogue.turns))
                    if is_example(dialogue, index, max_reply_bytes)
                ),
            )
        )
    return records


def pair(record: Record, reply: int, tokenizer: Tokenizer, context_tokens: int) -> Pair:
    """The example whose reply is turn `reply`: the last `context_tokens` ids of what came before.

    The reply ends with <eos>.
    """
    context: list[int] = []
    for index in range(reply - 1, -1, -1):
        mine = record.speakers[index] == record.speakers[reply]
        marker = tokenizer.me if mine else tokenizer.you
        context[:0] = [marker, *record.turns[index]]
        if len(context) >= context_tokens:
            break
    return Pair(context[-context_tokens:], [*record.turns[reply], tokenizer.eos])


def collate(pairs: Sequence[Pair], tokenizer: Tokenizer, reply_tokens: int | None = None) -> Batch:
    """Pad `pairs` to a batch; replies are cut to `reply_tokens` where given."""
    replies = [reply[:reply_tokens] for _, reply in pairs]
    width = max(len(context) for context, _ in pairs)
    length = max(map(len, replies))
    context = torch.full((len(pairs), width), tokenizer.pad)
    tokens = torch.full((len(pairs), length), tokenizer.pad)
    targets = torch.full((len(pairs), length), IGNORED)
    for row, (pair_, reply) in enumerate(zip(pairs, replies, strict=True)):
        context[row, width - len(pair_.context) :] = torch.tensor(pair_.context)
        tokens[row, : len(reply)] = torch.tensor([tokenizer.bos, *reply[:-1]])
        targets[row, : len(reply)] = torch.tensor(reply)
    return Batch(context, tokens, targets)
