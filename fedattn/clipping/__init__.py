"""Per-record gradients, clipped and noised; the only user of Opacus.

Two ways to the same clipped sum (`train.clipping`):

    book_keeping   one backward pass, norms from kept factors; ours (book_keeping.py)
    hooks          Opacus: every per-record gradient in memory

Opacus's ghost clipping is not offered: it sums by a second backward pass in float32, in which a
record whose places cancel can exceed its share of the first pass's norm without bound
(benchmarks.dp_step has its cost).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from fedattn.clipping.book_keeping import BookKeeping
from fedattn.clipping.clipped_sum import CLIP_MARGIN, CLIP_MARGIN_BFLOAT16, ClippedSum
from fedattn.clipping.hooks import PerRecordGradients, per_record_gradients
from fedattn.clipping.kept_sum import KeptSum
from fedattn.clipping.optimizer import PrivateOptimizer
from fedattn.model import AttentionGenerator

__all__ = [
    "CLIP_MARGIN",
    "CLIP_MARGIN_BFLOAT16",
    "BookKeeping",
    "ClippedSum",
    "Gradients",
    "KeptSum",
    "PerRecordGradients",
    "PrivateOptimizer",
    "clipped_gradients",
    "per_record_gradients",
]


class Gradients(Protocol):
    """The passes of one way of clipping; what a pass leaves is for its sum's `add`."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, tied ones once."""

    def losses_backward(self, losses: Tensor) -> None:
        """One pass over a batch's losses (rows,)."""

    def reset(self) -> None:
        """Forget everything a pass left behind, whether it ended or raised."""

    def close(self) -> None:
        """Remove the hooks."""


@contextmanager
def clipped_gradients(
    model: AttentionGenerator,
    method: str,
    clip_norm: float,
    draws: int = 1,
    precision: str = "float32",
) -> Iterator[tuple[Gradients, ClippedSum]]:
    """The passes of a method (`train.clipping`) over `model`, and their sum, for a `with` block.

    `draws` rows of a batch in turn are one record; passes are computed in `precision`.
    ModelError names a parameter that the method has no rule for.
    """
    gradients: Gradients
    total: ClippedSum
    if method == "book_keeping":
        book = BookKeeping(model, draws)
        margin = CLIP_MARGIN if precision == "float32" else CLIP_MARGIN_BFLOAT16
        gradients, total = book, KeptSum(book, clip_norm, margin)
    else:
        gradients = PerRecordGradients(model)
        total = ClippedSum(gradients.parameters, clip_norm, draws)
    try:
        yield gradients, total
    finally:
        total.forget()
        gradients.reset()
        gradients.close()
