"""Mask work beside the least it could cost: a bare AES-256-CTR loop, taken in turns.

The loop is the project's baseline: keystream in chunks, added to one accumulator. Whichever of its
chunk sizes is fastest here counts. `with_keys` also derives every mask's key (X25519, HKDF), which
the loop does not need.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.secagg.sizes import Sizes
from benchmarks.secagg.spread import Spread
from fedattn.secagg import keys
from fedattn.secagg.prg import add_masks

_CHUNKS = (1 << 14, 1 << 16, 1 << 18)  # words


def bare_loop(total: np.ndarray, seeds: list[bytes], chunk: int) -> None:
    """Add the keystream of every seed to `total` (d,) uint32."""
    zeros, out = memoryview(bytes(4 * chunk)), bytearray(4 * chunk + 16)
    view = np.frombuffer(out, np.uint32, chunk)
    for seed in seeds:
        encryptor = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        for start in range(0, len(total), chunk):
            part = total[start : start + chunk]
            encryptor.update_into(zeros[: part.nbytes], out)
            np.add(part, view[: len(part)], out=part)


def compare(sizes: Sizes, repeats: int, masks: int = 20) -> dict[str, Any]:
    """Ratios of CPU per mask, ours over the loop's, with their spread over the repeats."""
    total = np.zeros(sizes.dim, np.uint32)
    private = keys.load(os.urandom(32))
    peers = [keys.public_bytes(os.urandom(32)) for _ in range(masks)]

    def derived() -> Iterator[tuple[bytes, int]]:
        for i, peer in enumerate(peers, 2):
            yield keys.pairwise_mask_key(private, peer, bytes(32), 1, i), 1

    seeds = [os.urandom(32) for _ in range(masks)]
    ours, with_keys, bare = [], [], []
    for _ in range(repeats + 1):
        bare.append(min(_cpu(lambda c=c: bare_loop(total, seeds, c)) for c in _CHUNKS))
        ours.append(_cpu(lambda: add_masks(total, [(seed, 1) for seed in seeds])))
        with_keys.append(_cpu(lambda: add_masks(total, derived())))
    ours, with_keys, bare = ours[1:], with_keys[1:], bare[1:]  # the first fills the caches
    scale = 1e3 / masks / (sizes.dim / 1e6)
    return {
        "ratio": Spread.of_ratios(ours, bare),
        "ratio_with_keys": Spread.of_ratios(with_keys, bare),
        "ours_ms_per_million": float(np.median(ours)) * scale,
        "bare_ms_per_million": float(np.median(bare)) * scale,
    }


def _cpu(step: Callable[[], object]) -> float:
    before = time.process_time()
    step()
    return time.process_time() - before
