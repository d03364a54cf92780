"""Masks: AES-256-CTR keystreams, added to an accumulator chunk by chunk.

A mask key serves one mask (its HKDF info names instruction and members), so the counter starts at
zero. A keystream is read as little-endian words of the accumulator's type; block i of it is the
cipher of i, so threads can each take a slice. Bonawitz et al. 2017, section 3.4 (PRG) and section
4 (double masking).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedattn.secagg.messages import Words

CHUNK_BYTES = 1 << 18  # 256 KB: keystream and accumulator slice stay in the second-level cache
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_BLOCK = 16
_BATCH = 256  # masks handed to the threads at once: their keys are all that is held

Mask = tuple[bytes, int]


def add_masks(total: Words, masks: Iterable[Mask], threads: int = 1) -> None:
    """Add the mask of every (key, sign) to `total` (d,) in place, wrapping.

    `sign` is +1 or -1; `total` is uint16 or uint32. Memory: one chunk of keystream a thread. The
    sum is the same for every number of threads; more than one pays from about a chunk each.
    """
    step = max(CHUNK_BYTES, -(-total.nbytes // max(threads, 1)))
    step += -step % _BLOCK  # a slice begins where a block of keystream does
    starts = range(0, total.nbytes, step)
    if len(starts) == 1:
        _add_slice(total, 0, masks)
        return
    todo = iter(masks)
    with ThreadPoolExecutor(len(starts)) as pool:
        while batch := tuple(islice(todo, _BATCH)):
            slices = [
                pool.submit(
                    _add_slice,
                    total[start // total.itemsize : (start + step) // total.itemsize],
                    start // _BLOCK,
                    batch,
                )
                for start in starts
            ]
            for done in slices:
                done.result()


def _add_slice(part: Words, first_block: int, masks: Iterable[Mask]) -> None:
    """Add to `part` the keystreams from block `first_block` on."""
    buffer = bytearray(CHUNK_BYTES + _BLOCK)
    stream = np.frombuffer(buffer, part.dtype.newbyteorder("<"), CHUNK_BYTES // part.itemsize)
    counter = modes.CTR(first_block.to_bytes(_BLOCK, "big"))
    for key, sign in masks:
        combine = np.add if sign > 0 else np.subtract
        encryptor = Cipher(algorithms.AES(key), counter).encryptor()
        for start in range(0, len(part), len(stream)):
            chunk = part[start : start + len(stream)]
            encryptor.update_into(_ZEROS[: chunk.nbytes], buffer)
            combine(chunk, stream[: len(chunk)], out=chunk)


def reduce_words(words: Words, modulus_bits: int) -> None:
    """Take `words` modulo 2^modulus_bits in place."""
    if modulus_bits < 8 * words.itemsize:
        np.bitwise_and(words, words.dtype.type((1 << modulus_bits) - 1), out=words)


def pairwise_sign(index: int, peer: int) -> int:
    """+1 if member `index` adds the mask it shares with `peer`, -1 if it subtracts it.

    >>> pairwise_sign(1, 2) + pairwise_sign(2, 1)
    0
    """
    return 1 if index < peer else -1
