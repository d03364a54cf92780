"""The advertisements that the server holds, and the graph that they draw."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fedattn.secagg import messages
from fedattn.secagg.checks import require
from fedattn.secagg.shown import read_advertisement
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.wire import EVERYONE, Stage, server_message


class Adverts:
    """Verified advertisements by member: who masks with whom, and who holds whose shares.

    Who holds a member's shares: everybody in the complete graph, else whom the member drew.
    """

    def __init__(self, spec: RoundSpec) -> None:
        self._spec = spec
        self._messages: dict[int, bytes] = {}  # whole advertise messages, relayed as they came
        self._read: dict[int, messages.Advertisement] = {}
        self._keys: set[bytes] = set()
        self._drawn_by: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, index: object) -> bool:
        return index in self._read

    def __iter__(self) -> Iterator[int]:
        """The members, ascending."""
        return iter(sorted(self._read))

    def __getitem__(self, index: int) -> messages.Advertisement:
        return self._read[index]

    def accept(self, index: int, message: bytes) -> None:
        """Verify and keep member `index`'s message."""
        advertisement = read_advertisement(self._spec, index, message)
        # (1) clients would refuse a list with a key advertised twice; the first one stays
        drawn = {advertisement.mask_key, advertisement.transport_key}
        fresh = len(drawn) == 2 and not drawn & self._keys
        require(fresh, "keys.repeated", f"member {index}: a key is advertised twice")
        self._keys |= drawn
        self._messages[index] = message
        self._read[index] = advertisement
        for member in advertisement.out_neighbours:
            self._drawn_by.setdefault(member, []).append(index)

    def neighbours(self, index: int) -> list[int]:
        """The members that `index` may mask with, ascending: it drew them, or they drew it."""
        if not self._spec.degree:
            return [other for other in self if other != index]
        either = {*self._read[index].out_neighbours, *self._drawn_by.get(index, ())}
        return sorted(either & self._read.keys())

    def holders(self, index: int) -> list[int]:
        """The other members to which `index` sends shares, ascending."""
        if not self._spec.degree:
            return self.neighbours(index)
        return [other for other in self._read[index].out_neighbours if other in self._read]

    def owners(self, index: int) -> Collection[int]:
        """The members whose shares `index` holds, among them itself in the complete graph."""
        return self._drawn_by.get(index, ()) if self._spec.degree else self._read.keys()

    def absent(self, index: int, sharers: Collection[int]) -> tuple[int, ...]:
        """Who of the members that `index` drew is not among `sharers`, ascending."""
        return tuple(other for other in self._read[index].out_neighbours if other not in sharers)

    def key_list(self, index: int) -> bytes:
        """The message that relays to `index` (or to EVERYONE) the advertisements it needs."""
        near = list(self) if index == EVERYONE else sorted((index, *self.neighbours(index)))
        body = messages.KeyList(tuple(self._messages[member] for member in near)).encode()
        return server_message(self._spec, Stage.SHARE, index, body)
