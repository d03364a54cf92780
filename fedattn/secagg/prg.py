"""Masks: AES-256-CTR keystreams, added to an accumulator chunk by chunk.

A mask key serves one mask (its HKDF info names instruction and members), so the counter starts at
zero. A keystream is read as little-endian words of the accumulator's type. Bonawitz et al. 2017,
section 3.4 (PRG) and section 4 (double masking).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedattn.secagg.messages import Words

CHUNK_BYTES = 1 << 18  # 256 KB: keystream and accumulator slice stay in the second-level cache
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_BLOCK = 16


def add_masks(total: Words, masks: Iterable[tuple[bytes, int]]) -> None:
    """Add the mask of every (key, sign) to `total` (d,) in place, wrapping.

    `sign` is +1 or -1; `total` is uint16 or uint32. One chunk of keystream is all the memory used.
    """
    buffer = bytearray(CHUNK_BYTES + _BLOCK)
    stream = np.frombuffer(buffer, total.dtype.newbyteorder("<"), CHUNK_BYTES // total.itemsize)
    for key, sign in masks:
        combine = np.add if sign > 0 else np.subtract
        encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK))).encryptor()
        for start in range(0, len(total), len(stream)):
            part = total[start : start + len(stream)]
            encryptor.update_into(_ZEROS[: part.nbytes], buffer)
            combine(part, stream[: len(part)], out=part)


def pairwise_sign(index: int, peer: int) -> int:
    """+1 if member `index` adds the mask it shares with `peer`, -1 if it subtracts it.

    >>> pairwise_sign(1, 2) + pairwise_sign(2, 1)
    0
    """
    return 1 if index < peer else -1
