"""The mechanism of a sum that carries noise: everything that follows from config and dimension.

A device clips in l2 norm, rotates, rounds to an integer grid, adds its share of the noise (`noise:
distributed`) and masks. DESIGN section 4; Kairouz, Liu and Steinke 2021 (arXiv 2102.06387) for
rotation and rounding, Agarwal, Kairouz and Liu 2021 (arXiv 2110.04995) for Skellam noise. Grid
units throughout: s of them are one unit of the model's parameters.

Shares. A round of n clients accepts T(n) survivors, of whom c may collude. Each share has variance
mu / (T(n) - c), so any accepted set of honest survivors adds at least mu = (sigma s C)^2.

Outsiders. Where clients are sampled (`client_rate` below 1) amplification needs a release whose
law does not tell who took part: the server divides by the public expected cohort and tops the
noise up to R mu, R = max over n of n / (T(n) - c), whatever survived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedattn import modulus
from fedattn.config import Config, Hypothetical
from fedattn.errors import PrivacyError, UpdateError
from fedattn.rotation import block_size, padded_size
from fedattn.rounding import (
    conditional_l2_bound,
    dithered_l2_bound,
    l1_bound,
    sum_variance_proxy,
)

Sizes: TypeAlias = npt.NDArray[np.int64]
# s C is this many times the root of the padded dimension. Rounding then adds 1 % to the sensitivity
# in `dithered_l2_bound`, and 0.4 % in `conditional_l2_bound` from some thousand coordinates on (9 %
# for one), where sums of about a hundred clients fit 16 bits and an upload is half as long.
_FINENESS = {"conversation": 100.0, "client": 6.0}


@dataclass(frozen=True)
class Mechanism:
    """The noised sum of `config` over `dimension` (d) trainable parameters.

    PrivacyError if `config` puts no noise on the sum.
    """

    config: Config
    dimension: int

    def __post_init__(self) -> None:
        if not self.config.is_summed_noise:
            raise PrivacyError(
                f"privacy.noise is {self.config.privacy.noise}: there is no noise on the sum"
            )

    @property
    def padded(self) -> int:
        """Coordinates of the rotated vector, those that are rounded, noised and masked."""
        return padded_size(self.dimension)

    @property
    def grid_scale(self) -> float:
        """s: grid steps per unit."""
        scale = self.config.secagg.grid_scale
        if scale != "auto":
            return scale
        privacy = self.config.privacy
        return _FINENESS[privacy.unit] * math.sqrt(self.padded) / privacy.clip_norm

    @property
    def clip(self) -> float:
        """s C: the clip norm in grid units."""
        return self.grid_scale * self.config.privacy.clip_norm

    @property
    def l2(self) -> float:
        """D2: how far apart in l2 norm the rounded sums of neighbours can be."""
        bound = dithered_l2_bound if self.config.is_one_step else conditional_l2_bound
        return bound(self.clip, self.padded)

    @property
    def l1(self) -> float:
        """D1: how far apart in l1 norm."""
        return l1_bound(self.l2, self.padded)

    @property
    def noise_factor(self) -> float:
        """What the noise's deviation is multiplied by; 1 unless a cohort is simulated.

        The mean over N clients carries noise of sigma C / N; over the n that there are the same
        noise on the mean is n / N of it on the sum.
        """
        wanted = self.config.privacy.hypothetical
        return 1.0 if wanted is None else self.expected_cohort / wanted.cohort

    @property
    def variance(self) -> float:
        """mu: variance per coordinate that the honest survivors' shares (or the server) add."""
        return (self.noise_factor * self.config.privacy.noise_multiplier * self.clip) ** 2

    @property
    def expected_cohort(self) -> float:
        """Clients expected in a round."""
        return self.config.data.clients * self.config.privacy.client_rate

    @property
    def is_sampled(self) -> bool:
        """Whether the server draws each round's clients."""
        return self.config.privacy.client_rate < 1

    def share_variance(self, cohort: int) -> float:
        """Variance per coordinate of one device's share among `cohort` clients, or 0."""
        if self.config.privacy.noise != "distributed":
            return 0.0
        honest = threshold_of(self.config, cohort) - self.config.secagg.max_colluding
        return self.variance / honest

    @cached_property
    def released_variance(self) -> float:
        """Variance per coordinate of the released sum's noise, at least; exactly, if sampled."""
        if self.config.privacy.noise != "distributed":
            return self.variance
        sizes = self._sizes
        honest = self._thresholds - self.config.secagg.max_colluding
        counted = sizes if self.is_sampled else self._thresholds
        return self.variance * float((counted / honest).max())

    @cached_property
    def participant_variance(self) -> float:
        """Noise that a participant, who knows its own share, does not know: T - 1 shares."""
        honest = self._thresholds - self.config.secagg.max_colluding
        return self.variance * float(((self._thresholds - 1) / honest).min())

    @cached_property
    def smallest_share(self) -> float:
        """The smallest variance of one share in any round that may be run."""
        honest = self._thresholds - self.config.secagg.max_colluding
        return self.variance / float(honest.max())

    @property
    def _sizes(self) -> Sizes:
        """Sizes of cohorts that a round is run with."""
        n = self.config.data.clients
        first = self.config.secagg.threshold if self.is_sampled else n
        return np.arange(first, n + 1, dtype=np.int64)

    @cached_property
    def _thresholds(self) -> Sizes:
        return _thresholds(self.config, self._sizes)

    def modulus_bits(self, cohort: int) -> int:
        """b for a round of `cohort` clients: the sum wraps with probability 2^-20 at most.

        A sum of clipped vectors is at most `cohort` (or `max_units`) times s C long; rotated by
        random signs each coordinate is sub-Gaussian. UpdateError, with the arithmetic, if no
        modulus up to 2^32 (or the config's own) is enough.
        """
        stated, spread = self.config.secagg.modulus_bits, self._spread(cohort)
        if stated == "auto":
            return modulus.required_bits(float(cohort), spread, self.padded)
        modulus.require_bits(stated, float(cohort), spread, self.padded)
        return stated

    def wrap_probability(self, cohort: int) -> float:
        """An upper bound on Pr[a coordinate of the sum of `cohort` clients wraps]."""
        bits, spread = self.modulus_bits(cohort), self._spread(cohort)
        return modulus.wrap_probability(bits, float(cohort), spread, self.padded)

    def _spread(self, cohort: int) -> float:
        """What a coordinate's deviation from its roundings is bounded by, as a variance."""
        privacy = self.config.privacy
        units = privacy.max_units if self.config.is_one_step else cohort
        noise = cohort * self.share_variance(cohort)
        return sum_variance_proxy(units * self.clip, block_size(self.dimension), noise)

    def divisor(self, survivors: int) -> float:
        """What the decoded sum is divided by: public, and the same for neighbours."""
        if self.config.is_one_step:
            return float(self.config.train.expected_batch_size)
        return self.expected_cohort if self.is_sampled else float(survivors)


def threshold_of(config: Config, cohort: int) -> int:
    """T(n): survivors that a round of `cohort` clients needs.

    `secagg.threshold` where all clients take part. Where they are sampled that is the least, and a
    larger cohort needs all but `dropout_share` of itself, and a quorum 2 T > n + c.
    """
    return int(_thresholds(config, np.array([cohort]))[0])


def _thresholds(config: Config, sizes: Sizes) -> Sizes:
    secagg = config.secagg
    if config.privacy.client_rate == 1:
        return np.full_like(sizes, secagg.threshold)
    quorum = (sizes + secagg.max_colluding) // 2 + 1
    lost = Fraction(secagg.dropout_share).limit_denominator(10**6)  # as `secagg.graph` counts
    most = sizes - sizes * lost.numerator // lost.denominator
    needed: Sizes = np.maximum(np.maximum(quorum, most), secagg.threshold)
    return needed


def hypothetical_world(config: Config) -> Config | None:
    """The config whose cohorts are as large as `privacy.hypothetical` pretends; None if unset.

    Thresholds and collusion keep their shares of the cohort. For pricing alone.
    """
    wanted: Hypothetical | None = config.privacy.hypothetical
    if wanted is None:
        return None
    grown = wanted.cohort / (config.data.clients * config.privacy.client_rate)
    secagg = config.secagg.model_copy(
        update={
            "threshold": max(1, math.ceil(config.secagg.threshold * grown)),
            "max_colluding": math.floor(config.secagg.max_colluding * grown),
        }
    )
    privacy = config.privacy.model_copy(
        update={
            "hypothetical": None,
            "client_rate": wanted.cohort / wanted.population,
            "max_units": max(config.privacy.max_units, wanted.population),
        }
    )
    data = config.data.model_copy(update={"clients": wanted.population})
    return config.model_copy(update={"secagg": secagg, "privacy": privacy, "data": data})


def check_mechanism(config: Config, dimension: int) -> None:
    """Raise PrivacyError or UpdateError, with the remedy, unless the mechanism can run.

    Called before anything is contacted: the largest cohort must fit the modulus.
    """
    if not config.is_summed_noise:
        return
    mechanism = Mechanism(config, dimension)
    try:
        mechanism.modulus_bits(config.data.clients)
    except UpdateError as error:
        raise UpdateError(f"secagg.modulus_bits: {error}") from None
