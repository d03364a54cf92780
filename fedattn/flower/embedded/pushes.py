"""The messages of one push: what they share on the way out, and the sum of what comes back."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import numpy as np
from flwr.app import Message

from fedattn.flower.embedded.broadcast import Broadcast
from fedattn.flower.embedded.shared_sum import SharedSum
from fedattn.flower.embedded.worker import Opening
from fedattn.flower.summing import Extract, Words, extracted


class Sum:
    """The sum modulo 2^32 of the words of the replies that were yielded, wherever they were added.

    A worker adds a reply's words before its reply is read, so the sum is over what was read, less
    what was read and is withheld. `is_here`: this process sees every reply whole and adds itself.
    """

    def __init__(self, length: int, extract: Extract, *, is_here: bool) -> None:
        self.length, self.extract, self.is_here = length, extract, is_here
        self._here = np.zeros(length, np.uint32) if is_here else None
        self._parts: dict[object, SharedSum] = {}  # by worker
        self._read: dict[object, int] = {}  # how many additions of each are read of
        self._withheld: dict[str, Words] = {}  # by message

    def part(self, worker: object) -> SharedSum:
        """Where `worker` adds."""
        if worker not in self._parts:
            self._parts[worker], self._read[worker] = SharedSum.create(self.length), 0
        return self._parts[worker]

    def read(self, worker: object, name: str, added: int, *, is_wanted: bool) -> None:
        """The reply to `name` has come, with addition `added` of `worker` made (0: none).

        If it is not wanted now it is withheld from the sum. To be called before `worker` is given
        another message.
        """
        if added:
            self._read[worker] = added
            if not is_wanted:
                self._withheld[name] = self._parts[worker].words(added)

    def claim(self, name: str) -> None:
        """A reply that was withheld is yielded."""
        self._withheld.pop(name, None)

    def add(self, reply: Message) -> None:
        """Take the words out of a whole reply, here."""
        assert self._here is not None
        words = extracted(self.extract, reply, self.length)
        if words is not None:
            np.add(self._here, words, out=self._here)

    def total(self) -> Words:
        """The sum (length,)."""
        total = np.zeros(self.length, np.uint32) if self._here is None else self._here
        for worker, part in self._parts.items():
            total += part.through(self._read[worker])
        for words in self._withheld.values():
            total -= words
        return total


class Push:
    """The messages pushed together, and what each worker must have before the first of them."""

    def __init__(self, messages: Iterable[Message], sum: Sum | None = None) -> None:
        self.broadcast, self.sum = Broadcast(messages), sum
        self._extract = b"" if sum is None or sum.is_here else pickle.dumps(sum.extract)

    def opening(self, worker: object) -> tuple[Opening, tuple[()], list[int]]:
        """What opens this push in `worker`, and the descriptors that go along."""
        lengths, descriptors = tuple(self.broadcast.lengths), []
        if lengths:
            descriptors.append(self.broadcast.descriptor())
        if self.sum is None or self.sum.is_here:
            return Opening(lengths), (), descriptors
        descriptors.append(self.sum.part(worker).segment.descriptor)
        return Opening(lengths, self.sum.length, self._extract), (), descriptors
