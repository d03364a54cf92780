"""The server's part in counters: it relays them and their countersignatures, and remembers, too.

It is one more member that remembers: an honest server tells a device what its ledger should
contain before it answers. Devices rely on what they verify themselves (`fedattn.counters`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedattn.counters import Counter, CounterMemory, join, require_newer
from fedattn.errors import ProtocolError
from fedattn.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES


class Witnesses:
    """The counters of one round: who advertised which, and who countersigned it."""

    def __init__(self, memory: CounterMemory, instruction: bytes) -> None:
        self._memory, self._instruction = memory, instruction
        self._known = memory.read()
        self._counters: dict[bytes, Counter] = {}
        self._signatures: dict[bytes, dict[bytes, bytes]] = {}  # device -> witness -> signature

    def remembered(self, key: bytes) -> bytes:
        """What is remembered of a device, for itself to compare; empty if nothing is."""
        found = self._known.get(key)
        return b"" if found is None else found.to_bytes()

    def check(self, key: bytes, data: bytes) -> Counter:
        """The counter that the device `key` advertises; ProtocolError("counter.*") if it lies."""
        counter = Counter.parse(data)
        if counter.key != key:
            raise ProtocolError("counter.key", "is another device's")
        require_newer(counter, self._known.get(key), self._instruction)
        return counter

    def add(self, counter: Counter) -> None:
        """Take the counter of a device that is in the round."""
        self._counters[counter.key] = counter

    def remember(self) -> None:
        """Keep this round's counters on disk, before anybody is shown them."""
        self._memory.check_and_remember(self._counters.values(), self._instruction)

    def shown_to(self, key: bytes, near: Iterable[bytes]) -> bytes:
        """The counters of `near`, the members whose keys the device `key` is shown."""
        return join(self._shown(key, near))

    def countersigned(self, witness: bytes, near: Iterable[bytes], data: bytes) -> None:
        """Take one signature for each counter that `witness` was shown, in that order.

        Whether they are valid is for the devices to say, who need only a few.
        """
        shown = self._shown(witness, near)
        if len(data) != SIGNATURE_BYTES * len(shown):
            raise ProtocolError("counter.format", "needs one signature a counter")
        for place, counter in enumerate(shown):
            signature = data[place * SIGNATURE_BYTES : (place + 1) * SIGNATURE_BYTES]
            self._signatures.setdefault(counter.key, {})[witness] = signature

    def signatures_for(self, key: bytes) -> bytes:
        """Who countersigned the device's counter: key and signature, one after another."""
        return b"".join(
            witness + signature for witness, signature in self._signatures.get(key, {}).items()
        )

    def _shown(self, key: bytes, near: Iterable[bytes]) -> Sequence[Counter]:
        return [self._counters[each] for each in near if each != key]


def read_signatures(data: bytes) -> dict[bytes, bytes]:
    """Inverse of `Witnesses.signatures_for`; ProtocolError("counter.format") otherwise."""
    size = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
    if len(data) % size:
        raise ProtocolError("counter.format", f"must be {size} bytes each")
    pairs = [data[start : start + size] for start in range(0, len(data), size)]
    return {pair[:PUBLIC_KEY_BYTES]: pair[PUBLIC_KEY_BYTES:] for pair in pairs}
