"""From drawn examples to tensors: padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedattn.records import Pair, Record, pair, tokenize
from fedattn.tokens import Tokenizer

__all__ = ["IGNORED", "Batch", "Pair", "Record", "collate", "pair", "tokenize"]

IGNORED = -100  # target of a padded place; F.cross_entropy's own default


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


def collate(pairs: Sequence[Pair], tokenizer: Tokenizer, reply_tokens: int | None = None) -> Batch:
    """Pad `pairs` to a batch; replies are cut to `reply_tokens` where given."""
    contexts = [context for context, _ in pairs]
    replies = [reply[:reply_tokens] for _, reply in pairs]
    width, length = max(map(len, contexts)), max(map(len, replies))
    empty = width - _lengths(contexts)
    context = _filled(contexts, np.arange(width) >= empty, tokenizer.pad)
    is_reply = np.arange(length) < _lengths(replies)
    targets = _filled(replies, is_reply, IGNORED)
    tokens = np.full_like(targets, tokenizer.pad)
    # what a reply's token is scored from: <bos>, then the token before it
    tokens[:, :1] = np.where(is_reply[:, :1], tokenizer.bos, tokenizer.pad)
    np.copyto(tokens[:, 1:], targets[:, :-1], where=is_reply[:, 1:])
    return Batch(*map(torch.from_numpy, (context, tokens, targets)))


def _lengths(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """How long each row is, (B, 1)."""
    return np.fromiter(map(len, rows), np.int64, len(rows))[:, None]


def _filled(
    rows: Sequence[Sequence[int]], places: npt.NDArray[np.bool_], fill: int
) -> npt.NDArray[np.int64]:
    """(B, W) with each row's ids at its true `places` (B, W), in order, and `fill` elsewhere."""
    out = np.full(places.shape, fill, np.int64)
    # a true place is filled row by row: in the order of the ids, one after another
    out[places] = np.fromiter(chain.from_iterable(rows), np.int64, sum(map(len, rows)))
    return out
