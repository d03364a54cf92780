"""A running sum in shared memory: one process adds, another takes exactly the sum it means.

Two buffers: the k-th addition reads buffer (k - 1) mod 2 and writes buffer k mod 2, so while it
goes on the sum of the first k - 1 stands. A worker gets its next message only after its parent has
read its last reply. So the sum of the additions that the parent has read of stands whatever the
worker is doing, and if it was killed in the middle of an addition, or before its reply left.
"""

from __future__ import annotations

import mmap

import numpy as np

from fedattn.flower.embedded import memory
from fedattn.flower.summing import Words

_BUFFERS = 2
_HEAD = 4096  # a page, for the number of additions


class SharedSum:
    """The sum modulo 2^32 of words (length,) uint32; one process adds, its parent reads."""

    def __init__(self, segment: memory.Segment, length: int) -> None:
        self.segment, self.length = segment, length
        self._map = mmap.mmap(segment.descriptor, _size(length))
        self._count = np.frombuffer(self._map, np.uint64, 1)
        self._buffers = [
            np.frombuffer(self._map, np.uint32, length, _HEAD + i * _stride(length))
            for i in range(_BUFFERS)
        ]

    @classmethod
    def create(cls, length: int) -> SharedSum:
        """A new one, of no words: zero."""
        return cls(memory.Segment(memory.allocate(_size(length))), length)

    @property
    def count(self) -> int:
        """How many additions are complete."""
        return int(self._count[0])

    def add(self, words: Words) -> int:
        """Add `words`, and return how many additions that makes."""
        made = self.count + 1
        np.add(self._at(made - 1), words, out=self._at(made))
        self._count[0] = made
        return made

    def through(self, made: int) -> Words:
        """The sum of the first `made` additions, a view, until the next but one begins."""
        return self._at(made)

    def words(self, made: int) -> Words:
        """What addition `made` added, before the next one begins."""
        return self._at(made) - self._at(made - 1)

    def _at(self, made: int) -> Words:
        return self._buffers[made % _BUFFERS]


def _stride(length: int) -> int:
    return -(-4 * length // _HEAD) * _HEAD


def _size(length: int) -> int:
    return _HEAD + _BUFFERS * _stride(length)
