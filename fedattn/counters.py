"""Counters: what peers remember of each device's ledger, so that an old copy of one shows.

A device that accepts an instruction signs how long its ledger is and the hash of its last line.
The members of the round check that no counter went back, remember the newest one of each member,
and countersign it; a device trains only once more members than may collude have countersigned, so
that an honest one remembers. A ledger restored from a backup is then refused

- by the device itself, when it is shown a statement of its own that is not in its ledger;
- by every peer that remembers, when it is shown a counter that is not above the remembered one.

Limits: peers that forgot, that all collude, or that never meet the device again detect nothing;
nor does a peer see a restored ledger that has grown, in rounds with others, beyond the counter that
it remembers. A counter tells how often the data took part, in other federations too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedattn.durable import write_durably
from fedattn.errors import ProtocolError, RunError
from fedattn.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify

PURPOSE: Final = b"fedattn/v1/device-counter"
COUNTERSIGN: Final = b"fedattn/v1/device-counter-witness"
_HASH_BYTES = 32
_COUNT_BYTES = 8
COUNTER_BYTES: Final = PUBLIC_KEY_BYTES + 2 * _HASH_BYTES + _COUNT_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True)
class Counter:
    """A device's signed word on its ledger when it accepted an instruction.

    Bytes: key 32 | instruction hash 32 | count u64, big-endian | head 32 | signature 64.
    """

    key: bytes  # the device's identity, raw Ed25519
    instruction: bytes  # hash of the accepted instruction
    count: int  # lines of the device's ledger
    head: bytes  # SHA-256 of its last line
    signature: bytes

    @classmethod
    def sign(cls, identity: SigningKey, instruction: bytes, count: int, head: bytes) -> Counter:
        """The statement of `identity`'s device."""
        signature = identity.sign(PURPOSE, instruction + _u64(count) + head)
        return cls(identity.public_bytes, instruction, count, head, signature)

    @classmethod
    def parse(cls, data: bytes) -> Counter:
        """Inverse of `to_bytes`; ProtocolError("counter.format") for another length."""
        if len(data) != COUNTER_BYTES:
            raise ProtocolError("counter.format", f"must have {COUNTER_BYTES} bytes")
        key, rest = data[:PUBLIC_KEY_BYTES], data[PUBLIC_KEY_BYTES:]
        instruction, rest = rest[:_HASH_BYTES], rest[_HASH_BYTES:]
        count, rest = int.from_bytes(rest[:_COUNT_BYTES], "big"), rest[_COUNT_BYTES:]
        return cls(key, instruction, count, rest[:_HASH_BYTES], rest[_HASH_BYTES:])

    def to_bytes(self) -> bytes:
        """The stored and sent form."""
        return self.key + self._signed + self.signature

    @property
    def _signed(self) -> bytes:
        return self.instruction + _u64(self.count) + self.head

    @property
    def is_genuine(self) -> bool:
        """Whether the key's owner signed it."""
        return verify(self.key, PURPOSE, self._signed, self.signature)

    def countersign(self, identity: SigningKey) -> bytes:
        """The 64-byte signature of a member that has seen, checked and remembered it."""
        return identity.sign(COUNTERSIGN, self.to_bytes())

    def is_countersigned_by(self, key: bytes, signature: bytes) -> bool:
        """Whether the owner of `key` countersigned it."""
        return verify(key, COUNTERSIGN, self.to_bytes(), signature)


class CounterMemory:
    """The newest counter of every device that was met, in a JSON file (key -> counter, in hex)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[bytes, Counter]:
        """What is remembered, by key; ProtocolError("counter.memory") if it cannot be read.

        A memory that cannot be read must not count as an empty one.
        """
        try:
            stored = json.loads(self.path.read_text("ascii"))
            found = [Counter.parse(bytes.fromhex(value)) for value in stored.values()]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError, ProtocolError):
            raise ProtocolError("counter.memory", f"{self.path.name} cannot be read") from None
        return {counter.key: counter for counter in found}

    def newest(self, key: bytes) -> bytes:
        """The remembered counter of `key` in bytes; none: empty."""
        found = self.read().get(key)
        return b"" if found is None else found.to_bytes()

    def check_and_remember(self, shown: Iterable[Counter], instruction: bytes) -> None:
        """Remember `shown`, counters of members that accepted `instruction`, on disk.

        ProtocolError("counter.repeated") or as `require_newer`, and nothing is remembered.
        """
        known, new = self.read(), {}
        for counter in shown:
            _require(counter.key not in new, "repeated", "two counters of one device")
            require_newer(counter, known.get(counter.key), instruction)
            new[counter.key] = counter
        self._write(known | new)

    def _write(self, counters: Mapping[bytes, Counter]) -> None:
        text = json.dumps({key.hex(): each.to_bytes().hex() for key, each in counters.items()})
        try:
            write_durably(self.path, text.encode("ascii"))
        except RunError:
            raise ProtocolError("counter.memory", f"{self.path.name} cannot be written") from None


def require_newer(counter: Counter, before: Counter | None, instruction: bytes) -> None:
    """`counter` is its device's word on this instruction and above what is remembered of it.

    ProtocolError("counter.instruction" | ".signature" | ".restored").
    """
    _require(counter.instruction == instruction, "instruction", "is of another round")
    _require(counter.is_genuine, "signature", "is not signed by its device")
    is_above = before is None or counter.count > before.count or counter == before
    _require(is_above, "restored", "a device shows an older ledger than is remembered")


def join(counters: Sequence[Counter]) -> bytes:
    """Counters as one byte string, in the order given."""
    return b"".join(counter.to_bytes() for counter in counters)


def split(data: bytes) -> list[Counter]:
    """Inverse of `join`; ProtocolError("counter.format") if its length does not fit."""
    _require(len(data) % COUNTER_BYTES == 0, "format", f"must be {COUNTER_BYTES} bytes each")
    starts = range(0, len(data), COUNTER_BYTES)
    return [Counter.parse(data[start : start + COUNTER_BYTES]) for start in starts]


def countersign_all(
    memory: CounterMemory,
    shown: bytes,
    near: Sequence[bytes],
    instruction: bytes,
    identity: SigningKey,
) -> bytes:
    """One signature for each of the `shown` counters, in their order, once all are remembered.

    `near`: keys of the members that this device masks with; ProtocolError("counter.members")
    unless each of them shows exactly one counter, or as `check_and_remember`.
    """
    counters = split(shown)
    keys = [counter.key for counter in counters]
    _require(sorted(keys) == sorted(near), "members", "not one counter of each member shown")
    memory.check_and_remember(counters, instruction)
    return b"".join(counter.countersign(identity) for counter in counters)


def require_witnesses(
    own: Counter, signatures: Mapping[bytes, bytes], members: Sequence[bytes], needed: int
) -> tuple[bytes, ...]:
    """The first `needed` members, by key, whose signature (key -> 64 bytes) countersigns `own`.

    Invalid ones and those of non-members do not count, so that a lying member stops nobody;
    ProtocolError("counter.witnesses") if fewer are left.
    """
    allowed = set(members) - {own.key}
    found: list[bytes] = []
    for key, signature in signatures.items():
        if len(found) == needed:
            break
        if key in allowed and own.is_countersigned_by(key, signature):
            found.append(key)
    if len(found) < needed:
        raise ProtocolError("counter.witnesses", f"{len(found)} members countersigned")
    return tuple(found)


def _u64(value: int) -> bytes:
    return value.to_bytes(_COUNT_BYTES, "big")


def _require(holds: bool, check: str, detail: str) -> None:
    if not holds:
        raise ProtocolError(f"counter.{check}", detail)
