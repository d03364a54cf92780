"""The body of every message, with its byte format (the envelope is in `wire.py`).

    stage      from    body
    advertise  client  mask key 32 | transport key 32 | seed commitment 32 | out-neighbours: list
    share      server  count u32, each: length u32 | a whole advertise message
    share      client  count u32, each: recipient u32 | packet 94
    upload     server  sharers: list | count u32, each: sender u32 | packet 94
    upload     client  bits u8 | d u32 | d words, little-endian: 2 bytes if bits <= 16, else 4
                       | in a sparse graph alone: notice
    confirm    server  survivors: list
    confirm    client  survivors' SHA-256 32 | statement 32 | signature 64
    unmask     server  survivors' SHA-256 32 | statement 32 | count u32, each: index u32 | sig. 64
                       | count u32, each: notice
    unmask     client  count u32, each: owner u32 | kind u8 (1 self seed, 2 mask key) | share 33

A *list* is count u32, then u32 indices. Out-neighbours are empty in the complete graph; a round
over a sparse graph (Bell et al. 2020) lists there whom the client drew. A *packet* is
nonce 12 | AES-256-GCM(seed share 33 | mask-key share 33) | tag 16. A *notice* is owner u32 |
absent: list | signature 64 (`confirmation.py`): which of the owner's draws it did not mask with.

`decode` of anything else raises ProtocolError("decode") and nothing but that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from fedattn.secagg.checks import require
from fedattn.secagg.keys import PACKET_BYTES
from fedattn.secagg.shamir import SHARE_BYTES, decode_share, encode_share
from fedattn.secagg.wire import HASH_BYTES, KEY_BYTES, Reader, blob, index_list, number
from fedattn.signing import SIGNATURE_BYTES

Words = npt.NDArray[np.unsignedinteger[Any]]  # uint16 or uint32
Buffer = bytes | memoryview


class Kind(IntEnum):
    """Which secret of its owner a revealed share belongs to."""

    SELF_SEED = 1
    MASK_KEY = 2


def word_type(modulus_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The words that vectors modulo 2^bits are added and sent in.

    >>> word_type(16).itemsize, word_type(17).itemsize
    (2, 4)
    """
    return np.dtype(np.uint16) if modulus_bits <= 16 else np.dtype(np.uint32)


@dataclass(frozen=True)
class Advertisement:
    """A client's keys of one round: what others need to mask and to encrypt for it."""

    mask_key: bytes
    transport_key: bytes
    seed_commitment: bytes
    out_neighbours: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """See the module's table."""
        keys = self.mask_key + self.transport_key + self.seed_commitment
        return keys + index_list(self.out_neighbours)

    @classmethod
    def decode(cls, body: Buffer) -> Advertisement:
        """Inverse of `encode`."""
        reader = Reader(body)
        keys = reader.take(KEY_BYTES), reader.take(KEY_BYTES), reader.take(HASH_BYTES)
        out = cls(*keys, reader.indices())
        reader.finish()
        return out


@dataclass(frozen=True)
class KeyList:
    """The advertise messages that the server relays, whole and signed, by ascending index."""

    advertisements: tuple[bytes, ...]

    def encode(self) -> bytes:
        """See the module's table."""
        return number(len(self.advertisements)) + b"".join(map(blob, self.advertisements))

    @classmethod
    def decode(cls, body: Buffer) -> KeyList:
        """Inverse of `encode`."""
        reader = Reader(body)
        out = cls(tuple(reader.blob() for _ in range(reader.count(4))))
        reader.finish()
        return out


def _encode_packets(packets: Iterable[tuple[int, bytes]]) -> bytes:
    parts = [number(index) + packet for index, packet in packets]
    return number(len(parts)) + b"".join(parts)


def _decode_packets(reader: Reader) -> tuple[tuple[int, bytes], ...]:
    count = reader.count(4 + PACKET_BYTES)
    return tuple((reader.number(4), reader.take(PACKET_BYTES)) for _ in range(count))


@dataclass(frozen=True)
class Packets:
    """One encrypted packet of shares per peer: (recipient, packet)."""

    packets: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        """See the module's table."""
        return _encode_packets(self.packets)

    @classmethod
    def decode(cls, body: Buffer) -> Packets:
        """Inverse of `encode`."""
        reader = Reader(body)
        out = cls(_decode_packets(reader))
        reader.finish()
        return out


@dataclass(frozen=True)
class Mailbox:
    """Who shared (U2), and the packets (sender, packet) addressed to one client."""

    sharers: tuple[int, ...]
    packets: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        """See the module's table."""
        return index_list(self.sharers) + _encode_packets(self.packets)

    @classmethod
    def decode(cls, body: Buffer) -> Mailbox:
        """Inverse of `encode`."""
        reader = Reader(body)
        out = cls(reader.indices(), _decode_packets(reader))
        reader.finish()
        return out


@dataclass(frozen=True)
class Notice:
    """Signed by `owner` with its vector: the members it drew and did not mask with, ascending."""

    owner: int
    absent: tuple[int, ...]
    signature: bytes

    def encode(self) -> bytes:
        """See the module's table."""
        return number(self.owner) + index_list(self.absent) + self.signature

    @classmethod
    def read(cls, reader: Reader) -> Notice:
        """The next notice."""
        return cls(reader.number(4), reader.indices(), reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class MaskedVector:
    """A masked vector: `words` (d,) modulo 2^modulus_bits; in a sparse graph with a notice."""

    modulus_bits: int
    words: Words = field(repr=False)
    notice: Notice | None = None

    def encode(self) -> tuple[bytes, memoryview, bytes]:
        """See the module's table; in parts, so that the vector is not copied."""
        little = np.ascontiguousarray(self.words, self.words.dtype.newbyteorder("<"))
        front = number(self.modulus_bits, 1) + number(len(little))
        return front, little.data.cast("B"), self.notice.encode() if self.notice else b""

    @classmethod
    def decode(cls, body: Buffer) -> MaskedVector:
        """Inverse of `encode`; the words are a view of `body`."""
        reader = Reader(body)
        bits = reader.number(1)
        require(8 <= bits <= 32, "decode", "modulus bits must be in 8..32")
        dtype = word_type(bits).newbyteorder("<")
        words = reader.view(reader.count(dtype.itemsize) * dtype.itemsize)
        notice = Notice.read(reader) if reader.remaining else None
        reader.finish()
        return cls(bits, np.frombuffer(words, dtype), notice)


@dataclass(frozen=True)
class SurvivorList:
    """The members whose masked vectors arrived (U3), the same list for all."""

    survivors: tuple[int, ...]

    def encode(self) -> bytes:
        """See the module's table."""
        return index_list(self.survivors)

    @classmethod
    def decode(cls, body: Buffer) -> SurvivorList:
        """Inverse of `encode`."""
        reader = Reader(body)
        out = cls(reader.indices())
        reader.finish()
        return out


@dataclass(frozen=True)
class Confirmation:
    """One survivor's signature on the survivor list and the statement."""

    survivors_sha256: bytes
    statement: bytes
    signature: bytes

    def encode(self) -> bytes:
        """See the module's table."""
        return self.survivors_sha256 + self.statement + self.signature

    @classmethod
    def decode(cls, body: Buffer) -> Confirmation:
        """Inverse of `encode`."""
        reader = Reader(body)
        hashes = reader.take(HASH_BYTES), reader.take(HASH_BYTES)
        out = cls(*hashes, reader.take(SIGNATURE_BYTES))
        reader.finish()
        return out


@dataclass(frozen=True)
class ConfirmationList:
    """Confirmations of one survivor list and statement, (index, signature), and the notices.

    In a sparse graph, a notice of every survivor that drew the recipient.
    """

    survivors_sha256: bytes
    statement: bytes
    signatures: tuple[tuple[int, bytes], ...]
    notices: tuple[Notice, ...] = ()

    def encode(self) -> bytes:
        """See the module's table."""
        signed = b"".join(number(index) + signature for index, signature in self.signatures)
        signed = number(len(self.signatures)) + signed + number(len(self.notices))
        return (
            self.survivors_sha256
            + self.statement
            + signed
            + b"".join(notice.encode() for notice in self.notices)
        )

    @classmethod
    def decode(cls, body: Buffer) -> ConfirmationList:
        """Inverse of `encode`."""
        reader = Reader(body)
        hashes = reader.take(HASH_BYTES), reader.take(HASH_BYTES)
        count = reader.count(4 + SIGNATURE_BYTES)
        signed = tuple((reader.number(4), reader.take(SIGNATURE_BYTES)) for _ in range(count))
        count = reader.count(8 + SIGNATURE_BYTES)
        out = cls(*hashes, signed, tuple(Notice.read(reader) for _ in range(count)))
        reader.finish()
        return out


@dataclass(frozen=True)
class RevealedShares:
    """The shares one client reveals: (owner, kind, share)."""

    shares: tuple[tuple[int, Kind, int], ...]

    def __repr__(self) -> str:
        return "RevealedShares(shares=<omitted>)"

    def encode(self) -> bytes:
        """See the module's table."""
        parts = [number(o) + number(kind, 1) + encode_share(s) for o, kind, s in self.shares]
        return number(len(parts)) + b"".join(parts)

    @classmethod
    def decode(cls, body: Buffer) -> RevealedShares:
        """Inverse of `encode`."""
        reader = Reader(body)
        shares = []
        for _ in range(reader.count(5 + SHARE_BYTES)):
            owner, kind = reader.number(4), reader.number(1)
            require(kind in (Kind.SELF_SEED, Kind.MASK_KEY), "decode", "no such kind of share")
            shares.append((owner, Kind(kind), decode_share(reader.take(SHARE_BYTES))))
        reader.finish()
        return cls(tuple(shares))
