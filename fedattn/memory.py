"""How many records are computed at once, and what running out of memory does.

A logical batch (what was sampled) is computed in physical batches. Their size changes memory and
time: not who is sampled, drawn, clipped or counted, nor the noise or its accounting.

- The ceiling: at most `train.max_physical_batch` examples, and with `train.max_batch_bytes` as many
  as fit by an estimate from public numbers (footprint.py). At least one record: a device declines
  before it reads data where the examples of one take more bytes than it gives.
- If memory runs out all the same, the batch is halved and computed again, down to one record,
  which then counts as any record whose pass fails. The whole process goes on with the largest
  half, quarter, ... of the ceiling at which *made-up* records of the longest lengths fit. That
  some batch did not fit may depend on the lengths of private records; the number does not.

What leaves depends on the split through float32's rounding of the passes alone, as it depends on
padding (clipping.py, CLIP_MARGIN; tests/test_memory.py measures it). An operator who wants even
that excluded sets `max_batch_bytes` so that memory never runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch

from fedattn.config import TrainConfig

T = TypeVar("T")
# What allocators say that raise a plain RuntimeError: torch's on the CPU, cuBLAS's, and torch's on
# a Jetson, whose report of a lack of memory itself fails for want of NVML (pytorch issue 185240).
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "NVML_SUCC")
_in_force: dict[Hashable, int] = {}  # ceilings that memory has lowered in this process


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def release() -> None:
    """Return what a failed pass held to the driver; call after its exception is gone."""
    with suppress(RuntimeError):
        torch.cuda.empty_cache()  # (nothing, where CUDA was not used)


def in_halves(items: Sequence[T], compute: Callable[[Sequence[T]], None]) -> bool:
    """`compute` the items at once or, where memory runs out, in halves; True if at once.

    `compute` must leave nothing behind when it raises. Every item is computed exactly once, in
    order. Other errors, and a lack of memory for a single item, are raised.
    """
    try:
        compute(items)
        return True
    except Exception as error:
        if len(items) < 2 or not is_out_of_memory(error):
            raise
    release()  # (here the traceback, which held the failed pass's tensors, is gone)
    middle = len(items) // 2
    in_halves(items[:middle], compute)
    in_halves(items[middle:], compute)
    return False


def ceiling(train: TrainConfig, bytes_each: int) -> int:
    """The most records of a physical batch, from public numbers alone; at least one.

    A record is `train.draws` examples of at most `bytes_each` (`footprint.bytes_per_example`).
    """
    most = train.max_physical_batch
    if train.max_batch_bytes is not None:
        most = min(most, train.max_batch_bytes // bytes_each)
    return max(1, most // train.draws)


class Rows:
    """The size of physical batches in this process: a ceiling that a lack of memory lowers.

    `key` says what a size was found for: model, place and kind of pass.
    """

    def __init__(self, key: Hashable, most: int) -> None:
        self._key, self._most = (key, most), most

    @property
    def count(self) -> int:
        """Records of a physical batch."""
        return _in_force.get(self._key, self._most)

    def compute(
        self,
        items: Sequence[T],
        run: Callable[[Sequence[T]], None],
        rehearse: Callable[[int], None],
    ) -> None:
        """`run` all items, in order, `count` at once or, where memory runs out, in halves.

        run: as `in_halves` wants it. rehearse(n): the same for n made-up records, without effect.
        """
        start = 0
        while start < len(items):
            part = items[start : start + self.count]
            start += len(part)
            if not in_halves(part, run):
                self._lower(rehearse)

    def _lower(self, rehearse: Callable[[int], None]) -> None:
        """Halve the size until that many made-up records fit; one is left."""
        count = self.count
        while count > 1 and not _fits(count, rehearse):
            count //= 2
        _in_force[self._key] = count


def _fits(count: int, rehearse: Callable[[int], None]) -> bool:
    try:
        rehearse(count)
        return True
    except Exception:
        return False
    finally:
        release()
