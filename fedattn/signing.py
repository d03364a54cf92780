"""Ed25519 identities: who signed which bytes, for which purpose.

A signature covers a purpose label and the exact stored bytes, so that a signature made for one
purpose never verifies for another (labels are constants such as `b"fedattn/v1/ledger-entry"`).
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedattn.errors import RunError
from fedattn.randomness import Randomness

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
REMEMBERED = 1 << 14  # verified messages of at most REMEMBERED_BYTES each
REMEMBERED_BYTES = 1024


class SigningKey:
    """An Ed25519 private key (RFC 8032); prints as `<omitted>`."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public_bytes: bytes = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"SigningKey(secret=<omitted>, fingerprint={fingerprint(self.public_bytes)!r})"

    @classmethod
    def generate(cls, randomness: Randomness) -> SigningKey:
        """A new key from 32 bytes of the stream."""
        return cls(randomness.bytes(32))

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a PEM file; RunError if it holds no unencrypted Ed25519 key."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise RunError(f"{path}: no such key; `fedattn keys new {path}` makes one") from None
        except (ValueError, TypeError, OSError):
            raise RunError(f"{path}: not an unencrypted PEM private key") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise RunError(f"{path}: not an Ed25519 key; `fedattn keys new` makes one")
        return cls(key.private_bytes_raw())

    def save(self, path: Path) -> None:
        """Write a PEM file that its owner alone can read; an existing file is refused."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise RunError(f"{path}: exists; a key is never overwritten") from None
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())

    def sign(self, purpose: bytes, data: bytes) -> bytes:
        """The 64-byte signature over `purpose` and `data`."""
        return self._key.sign(_message(purpose, data))


def verify(public_key: bytes, purpose: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` over `purpose` and `data` was made with `public_key` (32 bytes).

    A short message that verified is remembered, whole, with key and signature: in a simulation
    every device of a round verifies the same ones. What did not verify is not. Bytes may also be
    any buffer of them (bytearray, memoryview).
    """
    public_key, signature = bytes(memoryview(public_key)), bytes(memoryview(signature))
    message = _message(purpose, data)
    check = _remembered if len(message) <= REMEMBERED_BYTES else _require_valid
    try:
        check(public_key, message, signature)
    except (InvalidSignature, ValueError):
        return False
    return True


def _require_valid(public_key: bytes, message: bytes, signature: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)


# An exception is never remembered. Bytes are compared, not hashes of them: at most about 24 MB.
_remembered = lru_cache(maxsize=REMEMBERED)(_require_valid)


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of the raw public key in hex: what an auditor pins."""
    return hashlib.sha256(public_key).hexdigest()


def _message(purpose: bytes, data: bytes) -> bytes:
    return len(purpose).to_bytes(2, "big") + purpose + data
