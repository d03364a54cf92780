"""What survivors sign before any share is revealed, verifiable from hashes alone.

A confirmation is an Ed25519 signature, purpose `fedattn/v1/secagg-confirm`, over

    instruction hash 32 | SHA-256 of the survivor list 32 | statement 32

The statement is the hash of the ledger's intent; the caller supplies it on both sides. Bonawitz et
al. 2017, Figure 4, round 3 (ConsistencyCheck), with the statement added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fedattn.secagg.checks import require
from fedattn.secagg.wire import HASH_BYTES, index_list
from fedattn.signing import SigningKey, verify

PURPOSE = b"fedattn/v1/secagg-confirm"
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
