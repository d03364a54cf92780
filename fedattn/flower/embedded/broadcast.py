"""What the messages of one push share, written to shared memory once, read once by each worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from flwr.app import Message

from fedattn.flower.embedded import memory
from fedattn.flower.embedded.crossing import Packed, large_values


class Broadcast:
    """The large values that several messages of a push hold: the model, or a roster.

    Values are the same if they are one object: bytes never change.
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        values = [value for message in messages for value in large_values(message)]
        counts = Counter(map(id, values))
        self._held = {id(value): value for value in values if counts[id(value)] > 1}
        self._place = {name: place for place, name in enumerate(self._held)}
        self.lengths = [len(value) for value in self._held.values()]
        self._segment: memory.Segment | None = None

    def descriptor(self) -> int:
        """Shared memory that holds the values one after another, written when first asked for."""
        if self._segment is None:
            self._segment = memory.Segment(memory.allocate())
            memory.write(self._segment.descriptor, self._held.values())
        return self._segment.descriptor

    def split(self, packed: Packed) -> tuple[list[int], list[bytes]]:
        """For each value its place here, or -1; and the values that are not here."""
        places = [self._place.get(id(value), -1) for value in packed.values]
        own = [value for place, value in zip(places, packed.values, strict=True) if place < 0]
        return places, own


def read_broadcast(descriptor: int, lengths: Sequence[int]) -> list[bytes]:
    """A worker's one copy of each value."""
    values, at = [], 0
    for length in lengths:
        values.append(memory.read(descriptor, length, at))
        at += length
    return values


def joined(
    skeleton: bytes,
    places: Sequence[tuple[str, str]],
    shared_at: Sequence[int],
    shared: Sequence[bytes],
    own: Iterable[bytes],
) -> Packed:
    """The message that `Broadcast.split` took apart."""
    rest = iter(own)
    values = tuple(next(rest) if at < 0 else shared[at] for at in shared_at)
    return Packed(skeleton, tuple(places), values)
