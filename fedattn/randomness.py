"""Randomness is a parameter: OS entropy for privacy, a seed for tests.

A `Randomness` is a stream of AES-256-CTR keystream bytes. `Randomness.from_os()` keys it from the
operating system's entropy; `Randomness.seeded(seed, ...)` derives the key from a number, which
makes noise, samples and keys predictable: such a run is NOT PRIVATE and says so (`is_seeded`).
"""

from __future__ import annotations

import os
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Array: TypeAlias = npt.NDArray[np.float64]
_CHUNK_BYTES = 1 << 18  # 256 KB stays in the second-level cache
_ZEROS = memoryview(bytes(_CHUNK_BYTES))


class Randomness:
    """A cryptographic stream of random bytes, words and derived streams.

    Two streams of equal seed and label are equal; streams of different labels are independent
    (HKDF-SHA256, RFC 5869, with the label as `info`).

    >>> a, b = Randomness.seeded(7, "noise"), Randomness.seeded(7, "noise")
    >>> a.bytes(4) == b.bytes(4)
    True
    >>> a.child("x").bytes(4) == a.child("y").bytes(4)
    False
    """

    def __init__(self, key: bytes, *, is_seeded: bool) -> None:
        if len(key) != 32:
            raise ValueError(f"key has {len(key)} bytes, must have 32")
        self._key = key
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self.is_seeded = is_seeded

    def __repr__(self) -> str:
        return f"Randomness(key=<omitted>, is_seeded={self.is_seeded})"

    @classmethod
    def from_os(cls) -> Randomness:
        """A fresh stream keyed with 256 bits of operating-system entropy."""
        return cls(os.urandom(32), is_seeded=False)

    @classmethod
    def seeded(cls, seed: int, *labels: str) -> Randomness:
        """A stream anyone who knows `seed` can repeat: for tests, never for privacy."""
        key = _derive(seed.to_bytes(32, "big", signed=True), ("seed", *labels))
        return cls(key, is_seeded=True)

    def child(self, *labels: str) -> Randomness:
        """An independent stream: fresh from the OS if unseeded, derived by label if seeded."""
        if not self.is_seeded:
            return Randomness.from_os()
        return Randomness(_derive(self._key, ("child", *labels)), is_seeded=True)

    def bytes(self, n: int) -> bytes:
        """The next `n` bytes of the stream."""
        return self._encryptor.update(bytes(n))

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """The next `n` 64-bit words, uniform on 0..2^64-1."""
        out = np.empty(n, np.uint64)
        self.fill(out)
        return out

    def fill(self, words: npt.NDArray[np.uint64]) -> None:
        """Overwrite contiguous `words` (n,) with the next ones of the stream."""
        view = words.view(np.uint8)
        for start in range(0, view.size, _CHUNK_BYTES):
            part = view[start : start + _CHUNK_BYTES]
            self._encryptor.update_into(_ZEROS[: part.size], part.data)

    def uniform(self, n: int) -> Array:
        """`n` doubles, uniform on the multiples of 2^-53 in [0, 1)."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, bound: int) -> int:
        """One integer uniform on 0..bound-1, without modulo bias (rejection)."""
        if not 0 < bound <= 1 << 64:
            raise ValueError(f"bound is {bound}, must be in 1..2^64")
        limit = (1 << 64) - (1 << 64) % bound
        while True:
            word = int.from_bytes(self.bytes(8), "little")
            if word < limit:
                return word % bound


def _derive(secret: bytes, labels: tuple[str, ...]) -> bytes:
    info = b"fedattn/v1/randomness" + b"".join(
        len(part).to_bytes(4, "big") + part for part in (label.encode() for label in labels)
    )
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
