"""The update codec: clip to a public range, scale to a grid, round at random, add modulo 2^32.

With n clients, range r and scale s (grid steps per unit) the sum of rounded values lies within
n (r s + 1); the config is refused unless that fits a signed word, so that a sum cannot wrap
(probability 0; `check_no_wrap`). In every coordinate the decoded mean is off the mean of the
clipped updates by less than 1/s (each value's rounding is off by less than one grid step), and by
0 in expectation (stochastic rounding is unbiased; Gupta et al. 2015, arXiv 1502.02551, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedattn.errors import UpdateError
from fedattn.randomness import Randomness

Floats: TypeAlias = npt.NDArray[np.floating]
Words: TypeAlias = npt.NDArray[np.uint32]
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Codec:
    """Public parameters, equal for all clients of a round.

    clip_range: r > 0; each coordinate is clipped to [-r, r].
    grid_scale: s > 0; grid steps per unit.
    """

    clip_range: float
    grid_scale: float

    def check_no_wrap(self, clients: int) -> None:
        """Raise UpdateError unless any sum of `clients` encoded vectors decodes unambiguously."""
        bound = clients * (np.floor(self.clip_range * self.grid_scale) + 1)
        if bound >= 2.0**31:
            raise UpdateError(
                f"clients * (clip_range * grid_scale + 1) = {bound:g} must be below 2^31, or the "
                "sum would wrap; lower grid_scale or clip_range"
            )

    def encode(self, delta: Floats, randomness: Randomness) -> Words:
        """Clip, scale and stochastically round `delta` (d,) to words modulo 2^32.

        NaN counts as 0 and infinities as the end of the range: whatever left a private
        mechanism must not decide whether a reply is sent.

        >>> codec = Codec(clip_range=1.0, grid_scale=4.0)
        >>> codec.encode(np.array([0.5, -0.25, 9.0]), Randomness.seeded(0)).view(np.int32)
        array([ 2, -1,  4], dtype=int32)
        """
        if delta.ndim != 1:
            raise UpdateError(f"delta has {delta.ndim} dimensions, must have 1")
        words = np.empty(delta.size, np.uint32)
        for start in range(0, delta.size, _CHUNK):
            part = np.nan_to_num(delta[start : start + _CHUNK].astype(np.float64), nan=0.0)
            scaled = np.clip(part, -self.clip_range, self.clip_range) * self.grid_scale
            low = np.floor(scaled)
            low += randomness.uniform(part.size) < scaled - low
            words[start : start + _CHUNK] = low.astype(np.int64).astype(np.uint32)
        return words

    def decode_mean(self, total: Words, clients: int) -> npt.NDArray[np.float64]:
        """The mean update (d,) from the sum of `clients` encoded ones."""
        if clients < 1:
            raise UpdateError(f"clients is {clients}, must be at least 1")
        self.check_no_wrap(clients)
        signed = total.view(np.int32).astype(np.float64)
        limit = clients * (np.floor(self.clip_range * self.grid_scale) + 1)
        if signed.size and np.abs(signed).max() > limit:
            raise UpdateError(
                f"a decoded coordinate is beyond the bound {limit:g} of {clients} clients; "
                "a participant sent an update outside the range"
            )
        return signed / (self.grid_scale * clients)
