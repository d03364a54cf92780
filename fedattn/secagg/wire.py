"""The envelope of every message: header, body and, from a client, a signature.

    header  version u8 = 1 | stage u8 | role u8 | index u32 | instruction hash 32     (39 bytes)
    client  header | body | Ed25519 signature 64
    server  header | body

All integers are big-endian; only the words of a masked vector are little-endian. `role` is 1 for
the server, 2 for a client. `index` is the client's own index; from the server it is the
recipient's, or 0 for a message that is the same for all. A client signs
`header | SHA-256(body)` under the purpose `fedattn/v1/secagg-message`: instruction, stage, role
and index are in every signature, and a large vector is hashed once. The confirmation alone is
signed differently (`confirmation.py`), so that an auditor needs no message to verify it.
A server's message has no signature: the server is the adversary, and whatever a client believes
of it is signed by members or encrypted by one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from fedattn.errors import ProtocolError
from fedattn.secagg.checks import require
from fedattn.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify

if TYPE_CHECKING:
    from fedattn.secagg.spec import RoundSpec

VERSION = 1
HASH_BYTES = 32
KEY_BYTES = PUBLIC_KEY_BYTES
INDEX_LIMIT = (1 << 32) - 1
EVERYONE = 0
PURPOSE = b"fedattn/v1/secagg-message"
_HEADER = struct.Struct(">BBBI32s")


class Stage(IntEnum):
    """The stages of a round, in order; `DONE` refuses everything."""

    ADVERTISE = 1
    SHARE = 2
    UPLOAD = 3
    CONFIRM = 4
    UNMASK = 5
    DONE = 6


class Role(IntEnum):
    """Who speaks."""

    SERVER = 1
    CLIENT = 2


class Reader:
    """Reads fields from the front of `data`; whatever does not fit is ProtocolError("decode")."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._rest = memoryview(data)

    def view(self, n: int) -> memoryview:
        """The next `n` bytes, not copied."""
        if n > len(self._rest):
            raise ProtocolError("decode", "message ends within a field")
        field, self._rest = self._rest[:n], self._rest[n:]
        return field

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        return bytes(self.view(n))

    def number(self, size: int) -> int:
        """The next unsigned big-endian integer of `size` bytes."""
        return int.from_bytes(self.view(size), "big")

    def expect_items(self, count: int, item_bytes: int) -> None:
        """Refuse a count that the remaining bytes cannot hold, before anything is allocated."""
        if count * item_bytes > len(self._rest):
            raise ProtocolError("decode", "a list claims more items than the message holds")

    def count(self, item_bytes: int) -> int:
        """The next u32, as the length of a list of items of at least `item_bytes` bytes."""
        count = self.number(4)
        self.expect_items(count, item_bytes)
        return count

    def blob(self) -> bytes:
        """The next field, prefixed with its length as u32."""
        return self.take(self.count(1))

    def indices(self) -> tuple[int, ...]:
        """The next list of member indices: count u32, then u32 each."""
        count = self.count(4)
        return struct.unpack(f">{count}I", self.view(4 * count))

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._rest)

    def finish(self) -> None:
        """Refuse trailing bytes: one message, one encoding."""
        if len(self._rest):
            raise ProtocolError("decode", "bytes after the end of the message")


def number(value: int, size: int = 4) -> bytes:
    """Unsigned big-endian bytes."""
    return value.to_bytes(size, "big")


def blob(data: bytes) -> bytes:
    """`data` prefixed with its length as u32."""
    return number(len(data)) + data


def index_list(indices: Sequence[int]) -> bytes:
    """Count u32, then u32 each."""
    return number(len(indices)) + struct.pack(f">{len(indices)}I", *indices)


def header(spec: RoundSpec, stage: Stage, role: Role, index: int) -> bytes:
    """The 39 bytes that every message begins with."""
    return _HEADER.pack(VERSION, stage, role, index, spec.instruction_hash)


def sender(message: bytes) -> int:
    """The index in a message's header, not yet verified; ProtocolError("decode")."""
    return int(_HEADER.unpack(Reader(message).view(_HEADER.size))[3])


def body_of(
    spec: RoundSpec, message: bytes, *, stage: Stage, role: Role, index: int
) -> tuple[memoryview, memoryview]:
    """The (header, rest) of a message that must be this stage's, from or to member `index`.

    Raises ProtocolError("decode" | "message.stage" | "message.role" | "message.instruction" |
    "message.index").
    """
    reader = Reader(message)
    head = reader.view(_HEADER.size)
    version, said_stage, said_role, said_index, said_hash = _HEADER.unpack(head)
    require(version == VERSION, "decode", f"version {version}, this release reads {VERSION}")
    require(said_stage in range(Stage.ADVERTISE, Stage.DONE), "decode", "no such stage")
    require(said_role in (Role.SERVER, Role.CLIENT), "decode", "no such role")
    # (1) a message of another stage must not pass as this one's
    require(said_stage == stage, "message.stage", f"stage {said_stage}, expected {int(stage)}")
    # (2) nor a client's message as the server's
    require(said_role == role, "message.role", f"role {said_role}, expected {int(role)}")
    # (3) an old round's message, or one made under another instruction
    require(said_hash == spec.instruction_hash, "message.instruction", "made under another one")
    # (4) a message relayed under another member's name
    require(said_index == index, "message.index", f"index {said_index}, expected {index}")
    return head, memoryview(message)[_HEADER.size :]


def signed_message(
    spec: RoundSpec, identity: SigningKey, stage: Stage, index: int, *body: bytes | memoryview
) -> bytes:
    """A client's message: header, the parts of the body, signature."""
    head = header(spec, stage, Role.CLIENT, index)
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    signature = identity.sign(PURPOSE, head + digest.digest())
    return b"".join((head, *body, signature))


def open_signed(spec: RoundSpec, message: bytes, stage: Stage, index: int) -> memoryview:
    """The body of a client's message, its signature verified under the roster's key.

    Raises ProtocolError as `body_of` does, or "roster", or "message.signature".
    """
    head, rest = body_of(spec, message, stage=stage, role=Role.CLIENT, index=index)
    reader = Reader(rest)
    require(len(rest) >= SIGNATURE_BYTES, "decode", "message ends within a field")
    body = reader.view(len(rest) - SIGNATURE_BYTES)
    signature = reader.take(SIGNATURE_BYTES)
    signed = bytes(head) + hashlib.sha256(body).digest()
    # (5) an unsigned message is the server's own invention
    require(
        verify(spec.public_key(index), PURPOSE, signed, signature),
        "message.signature",
        f"not signed by member {index}",
    )
    return body


def server_message(spec: RoundSpec, stage: Stage, index: int, body: bytes) -> bytes:
    """A server's message to member `index`, or to EVERYONE."""
    return header(spec, stage, Role.SERVER, index) + body


def open_server(spec: RoundSpec, message: bytes, stage: Stage, index: int) -> memoryview:
    """The body of a server's message to member `index` (or EVERYONE); raises as `body_of`."""
    _, body = body_of(spec, message, stage=stage, role=Role.SERVER, index=index)
    return body
