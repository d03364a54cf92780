"""From a device's result to words that are masked and added, and from their sum to a mean.

Two codecs. Where noise is local or absent an update is clipped per coordinate and rounded
(`update.Codec`). Where noise protects the sum it is clipped in l2 norm, rotated, rounded to an
integer grid, given this device's share of Skellam noise, and only then taken modulo 2^b
(DESIGN section 4; `mechanism` has the parameters).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedattn.config import Config
from fedattn.errors import PrivacyError
from fedattn.mechanism import Mechanism
from fedattn.noise import add_gaussian, grid_step
from fedattn.randomness import Randomness
from fedattn.rotation import Rotation
from fedattn.rounding import (
    clip_l2,
    from_words,
    round_with_dither,
    round_with_retry,
    shared_dither,
    to_words,
)
from fedattn.skellam import SkellamSampler
from fedattn.update import Codec, Floats, Words

Vector = npt.NDArray[np.float64]


class RoundCodec(Protocol):
    """What a round's instruction sets: how a vector (d,) becomes `length` words and back."""

    @property
    def length(self) -> int:
        """Words in an encoded vector."""

    @property
    def modulus_bits(self) -> int:
        """b: words are added modulo 2^b."""

    def require_encodable(self) -> None:
        """UpdateError or PrivacyError for what `encode` would refuse, whatever the vector."""

    def encode(self, vector: Floats, index: int, randomness: Randomness) -> Words:
        """The words (length,) of client `index`'s `vector` (d,); nothing in it can raise."""

    def decode_mean(self, total: Words, survivors: int, randomness: Randomness) -> Vector:
        """The mean (d,) from the sum of `survivors` encoded vectors."""


@dataclass(frozen=True)
class PlainCodec:
    """Clipping per coordinate and rounding, for updates that carry their own noise or none."""

    codec: Codec
    dimension: int

    @property
    def length(self) -> int:
        """d."""
        return self.dimension

    @property
    def modulus_bits(self) -> int:
        """As configured."""
        return self.codec.modulus_bits

    def require_encodable(self) -> None:
        """Nothing: its own constructor refuses."""

    def encode(self, vector: Floats, index: int, randomness: Randomness) -> Words:
        """As `update.Codec.encode`; the client's `index` does not matter."""
        return self.codec.encode(vector, randomness)

    def decode_mean(self, total: Words, survivors: int, randomness: Randomness) -> Vector:
        """As `update.Codec.decode_mean`; UpdateError if a sum is beyond its bound."""
        return self.codec.decode_mean(total, survivors)


@dataclass(frozen=True)
class SumCodec:
    """The codec of a sum that carries noise, in a round of `cohort` clients.

    seed: 32 public bytes of the round, from which signs and dithers follow. Privacy does not rest
    on them: each is a function of public things alone, so it is the same for neighbours.
    """

    mechanism: Mechanism
    cohort: int
    seed: bytes

    @property
    def length(self) -> int:
        """d, padded to whole blocks."""
        return self.mechanism.padded

    @cached_property
    def modulus_bits(self) -> int:
        """The fewest bits in which this cohort's sum wraps with probability 2^-20 at most."""
        return self.mechanism.modulus_bits(self.cohort)

    @cached_property
    def _rotation(self) -> Rotation:
        return Rotation(self.mechanism.dimension, self._seed(b"rotation"))

    def _seed(self, purpose: bytes) -> bytes:
        return hashlib.sha256(b"fedattn/v1/" + purpose + self.seed).digest()

    def rounded(self, vector: Floats, index: int, randomness: Randomness) -> npt.NDArray[np.int64]:
        """The rotated vector on the grid (length,), before noise.

        One step: rounded once, with the dither of this client and round. Otherwise the vector is
        an update: clipped to the clip norm and rounded until its norm is within the bound.
        """
        mechanism = self.mechanism
        exact = np.nan_to_num(vector.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        if mechanism.config.is_one_step:
            turned = self._rotation.forward(exact) * mechanism.grid_scale
            dither = shared_dither(self._seed(b"dither"), mechanism.padded, str(index))
            return round_with_dither(turned, dither)
        clipped = clip_l2(vector.astype(np.float64), mechanism.config.privacy.clip_norm)
        turned = self._rotation.forward(clipped) * mechanism.grid_scale
        return round_with_retry(turned, mechanism.l2, randomness)

    def require_encodable(self) -> None:
        """Norm, bound and noise are within what rounding and sampler can do."""
        mechanism, nothing = self.mechanism, np.zeros(1)
        if not mechanism.config.is_one_step:
            clip_l2(nothing, mechanism.config.privacy.clip_norm)
            round_with_retry(nothing, mechanism.l2, Randomness.from_os())
        share = mechanism.share_variance(self.cohort)
        if share > 0:
            SkellamSampler(share)
        if mechanism.config.privacy.noise == "server":
            self._require_whole_grid()
        _ = self.modulus_bits

    def _require_whole_grid(self) -> None:
        """PrivacyError unless integers lie on the grid of the server's noise: none is moved."""
        std = math.sqrt(self.mechanism.variance)
        if grid_step(std) > 1:
            raise PrivacyError(
                f"standard deviation of the server's noise is {std:g} grid steps, must be below "
                "2^27: lower grid_scale, clip_norm or noise_multiplier"
            )

    def encode(self, vector: Floats, index: int, randomness: Randomness) -> Words:
        """Round `vector` (d,) and add this device's share of the noise, if devices add it."""
        values = self.rounded(vector, index, randomness.child("rounding"))
        share = self.mechanism.share_variance(self.cohort)
        if share > 0:
            noise = SkellamSampler(share).draw(values.size, randomness.child("noise"))
            values = values + noise
        return to_words(values, self.modulus_bits)

    def decode_mean(self, total: Words, survivors: int, randomness: Randomness) -> Vector:
        """The mean update, or mean gradient of a step, with the noise that the server adds.

        `noise: server`: N(0, mu) per coordinate. Sampled clients: Skellam noise that makes up for
        shares that dropped out, so that the release carries the same noise whoever took part.
        """
        mechanism = self.mechanism
        values = from_words(total, self.modulus_bits).astype(np.float64)
        if mechanism.config.privacy.noise == "server":
            self._require_whole_grid()
            add_gaussian(values, math.sqrt(mechanism.variance), randomness)
        elif mechanism.is_sampled:
            missing = mechanism.released_variance - survivors * mechanism.share_variance(
                self.cohort
            )
            if missing > 1e-9 * mechanism.released_variance:
                values += SkellamSampler(missing).draw(values.size, randomness)
        mean = self._rotation.inverse(values / mechanism.grid_scale)
        return mean / mechanism.divisor(survivors)


def codec_seed(config: Config, round_number: int, instruction_sha256: bytes) -> bytes:
    """The 32 public bytes of a round from which signs and dithers follow.

    The instruction's hash, so that nobody chooses them. In a seeded run (NOT PRIVATE) a function
    of seed and round alone: the hash covers time stamps, signatures and keys, and the released
    model would differ from engine to engine.
    """
    if config.seed is None:
        return instruction_sha256
    return Randomness.seeded(config.seed, "codec", str(round_number)).bytes(32)


def codec_of(config: Config, dimension: int, cohort: int, seed: bytes) -> RoundCodec:
    """The codec of a round of `cohort` clients over `dimension` trainable parameters."""
    if config.is_summed_noise:
        return SumCodec(Mechanism(config, dimension), cohort, seed)
    secagg = config.secagg
    codec = Codec(secagg.clip_range, config.plain_grid_scale, config.modulus_bits)
    return PlainCodec(codec, dimension)
