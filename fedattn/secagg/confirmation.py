"""What survivors sign before any share is revealed.

**Confirmations**, verifiable from hashes alone:

a confirmation is an Ed25519 signature, purpose `fedattn/v1/secagg-confirm`, over

    instruction hash 32 | SHA-256 of the survivor list 32 | statement 32

The statement is the hash of the ledger's intent; the caller supplies it on both sides. Bonawitz et
al. 2017, Figure 4, round 3 (ConsistencyCheck), with the statement added.

**Notices**, in a sparse graph alone: with its vector a client signs, purpose
`fedattn/v1/secagg-notice`,

    instruction hash 32 | owner u32 | absent: count u32, then u32 indices

`absent` are the members it drew and, told by the server that they were lost, did not mask with. A
holder reveals its share of the owner's self seed only if the owner's notice does not name it.
Otherwise a server could tell a client that k - t of its holders are lost, so that it masks with t,
call those t dropouts, and still open its self seed by the k - t: the client would refuse to
confirm, but nobody needs its confirmation. The complete graph needs no notice: there a survivor
must have been told of all T confirmers, or of one honest confirmer that masked with it at least.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from fedattn.secagg.checks import require
from fedattn.secagg.wire import HASH_BYTES, index_list, number
from fedattn.signing import SigningKey, verify

PURPOSE = b"fedattn/v1/secagg-confirm"
NOTICE_PURPOSE = b"fedattn/v1/secagg-notice"
_SURVIVORS = b"fedattn/v1/secagg-survivors"


def survivors_sha256(indices: Iterable[int]) -> bytes:
    """SHA-256 of label, count u32 and the ascending u32 indices; ProtocolError if one repeats.

    >>> survivors_sha256([3, 1]) == survivors_sha256([1, 3])
    True
    """
    ordered = sorted(indices)
    require(len(set(ordered)) == len(ordered), "survivors.distinct", "a member is listed twice")
    return hashlib.sha256(_SURVIVORS + index_list(ordered)).digest()


def confirmation_bytes(instruction_hash: bytes, survivors_sha256: bytes, statement: bytes) -> bytes:
    """The 96 bytes that a confirmation signs; ProtocolError unless each part has 32."""
    for part in (instruction_hash, survivors_sha256, statement):
        require(len(part) == HASH_BYTES, "confirmation.bytes", "every hash must have 32 bytes")
    return instruction_hash + survivors_sha256 + statement


def sign_confirmation(
    identity: SigningKey, instruction_hash: bytes, survivors_sha256: bytes, statement: bytes
) -> bytes:
    """The 64-byte signature of one survivor."""
    data = confirmation_bytes(instruction_hash, survivors_sha256, statement)
    return identity.sign(PURPOSE, data)


def verify_confirmation(
    public_key: bytes,
    instruction_hash: bytes,
    survivors_sha256: bytes,
    statement: bytes,
    signature: bytes,
) -> bool:
    """Whether `public_key`'s owner confirmed this list and statement under this instruction."""
    data = confirmation_bytes(instruction_hash, survivors_sha256, statement)
    return verify(public_key, PURPOSE, data, signature)


def notice_bytes(instruction_hash: bytes, owner: int, absent: Sequence[int]) -> bytes:
    """The bytes that a notice signs."""
    return instruction_hash + number(owner) + index_list(absent)


def sign_notice(
    identity: SigningKey, instruction_hash: bytes, owner: int, absent: Sequence[int]
) -> bytes:
    """The 64-byte signature of `owner` under its notice."""
    return identity.sign(NOTICE_PURPOSE, notice_bytes(instruction_hash, owner, absent))


def verify_notice(
    public_key: bytes,
    instruction_hash: bytes,
    owner: int,
    absent: Sequence[int],
    signature: bytes,
) -> bool:
    """Whether `owner`, whose key is given, signed that it masked with its draws but `absent`."""
    data = notice_bytes(instruction_hash, owner, absent)
    return verify(public_key, NOTICE_PURPOSE, data, signature)
