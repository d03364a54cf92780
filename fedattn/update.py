"""The update codec: clip to a public range, scale to a grid, round at random, add modulo 2^bits.

With n clients, range r and scale s (grid steps per unit) the sum of rounded values lies within
n (floor(r s) + 1); the config is refused unless that fits a signed word of `modulus_bits`, so
that a sum without noise of its own cannot wrap (probability 0; `modulus.py` has the bound with
noise). In every coordinate the decoded mean is off the mean of the clipped updates by less than
1/s (each value's rounding is off by less than one grid step), whatever the modulus, and by 0 in
expectation (stochastic rounding is unbiased; Gupta et al. 2015, arXiv 1502.02551, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedattn import modulus
from fedattn.errors import UpdateError
from fedattn.randomness import Randomness

Floats: TypeAlias = npt.NDArray[np.floating]
Words: TypeAlias = npt.NDArray[np.uint32]
_CHUNK = 1 << 16  # coordinates: a chunk's doubles stay in the second-level cache


@dataclass(frozen=True)
class Codec:
    """Public parameters, equal for all clients of a round.

    clip_range: r > 0; each coordinate is clipped to [-r, r].
    grid_scale: s > 0; grid steps per unit.
    modulus_bits: b in 8..32; words are added modulo 2^b and the sum is read as signed.
    """

    clip_range: float
    grid_scale: float
    modulus_bits: int = modulus.MAX_BITS

    def __post_init__(self) -> None:
        if not modulus.MIN_BITS <= self.modulus_bits <= modulus.MAX_BITS:
            raise UpdateError(f"modulus_bits is {self.modulus_bits}, must be in 8..32")

    def sum_bound(self, clients: int) -> float:
        """The largest absolute value that a sum of `clients` encoded coordinates can have."""
        return modulus.clipped_bound(clients, self.clip_range, self.grid_scale)

    def check_no_wrap(self, clients: int) -> None:
        """Raise UpdateError unless any sum of `clients` encoded vectors decodes unambiguously."""
        modulus.require_bits(self.modulus_bits, self.sum_bound(clients))

    def encode(self, delta: Floats, randomness: Randomness) -> Words:
        """Clip, scale and stochastically round `delta` (d,) to words modulo 2^modulus_bits.

        NaN counts as 0 and infinities as the end of the range: whatever left a private
        mechanism must not decide whether a reply is sent.

        >>> codec = Codec(clip_range=1.0, grid_scale=4.0, modulus_bits=8)
        >>> codec.encode(np.array([0.5, -0.25, 9.0]), Randomness.seeded(0))
        array([  2, 255,   4], dtype=uint32)
        """
        if delta.ndim != 1:
            raise UpdateError(f"delta has {delta.ndim} dimensions, must have 1")
        words = np.empty(delta.size, np.uint32)
        mask = np.uint32((1 << self.modulus_bits) - 1)
        for start in range(0, delta.size, _CHUNK):
            part = np.nan_to_num(delta[start : start + _CHUNK].astype(np.float64), nan=0.0)
            scaled = np.clip(part, -self.clip_range, self.clip_range) * self.grid_scale
            low = np.floor(scaled)
            low += randomness.uniform(part.size) < scaled - low
            words[start : start + _CHUNK] = low.astype(np.int64).astype(np.uint32) & mask
        return words

    def decode_mean(self, total: Words, clients: int) -> npt.NDArray[np.float64]:
        """The mean update (d,) from the sum of `clients` encoded ones, modulo 2^modulus_bits.

        Memory beyond the result: one chunk. Raises UpdateError if the sum could have wrapped, or
        if a coordinate is beyond what `clients` clipped values add up to.
        """
        if clients < 1:
            raise UpdateError(f"clients is {clients}, must be at least 1")
        self.check_no_wrap(clients)
        limit = self.sum_bound(clients)
        unused = 32 - self.modulus_bits  # shifted up and back, the top bit used becomes the sign
        mean = np.empty(total.size, np.float64)
        for start in range(0, total.size, _CHUNK):
            part = total[start : start + _CHUNK].astype(np.uint32, copy=False)
            signed = np.left_shift(part, unused).view(np.int32) >> unused
            if signed.max() > limit or signed.min() < -limit:
                raise UpdateError(
                    f"a decoded coordinate is beyond the bound {limit:g} of {clients} clients; "
                    "a participant sent an update outside the range"
                )
            np.divide(signed, self.grid_scale * clients, out=mean[start : start + _CHUNK])
        return mean
