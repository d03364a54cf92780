"""Two accountants of Gaussian events: privacy loss distributions and privacy random variables.

`PldAccountant` (Google's dp-accounting) discretises the privacy loss so that its upper bound is
pessimistic, in both directions of adjacency; `PrvAccountant` (Microsoft's prv-accountant) states
an error around its estimate. Both compose numerically by FFT; Renyi bounds, 12-16 % larger, choose
the grids alone. What depends on one step alone is remembered in this process: a run prices the same
step in every round, with one more round each time. Remembered values are the computed ones, bit for
bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

from fedattn.errors import PrivacyError
from fedattn.privacy.events import PoissonGaussian

_GRID_POINTS = 1 << 20  # of one discretised privacy loss
_LOSS_POINTS = 1 << 17  # of one step's, a direction: each an equation solved in Python


@dataclass(frozen=True)
class Bounds:
    """`lower <= estimate <= upper`; the true epsilon lies between lower and upper."""

    lower: float
    estimate: float
    upper: float

    @property
    def stated_error(self) -> float:
        """How far above its estimate the accountant says that epsilon could be."""
        return 0.0 if math.isinf(self.upper) else self.upper - self.estimate


class Accountant(Protocol):
    """Prices merged Poisson-Gaussian events."""

    name: str

    def bounds(self, events: Sequence[PoissonGaussian], delta: float) -> Bounds:
        """Bounds on the epsilon of all `events` together at `delta`."""


class PldAccountant:
    """Privacy loss distributions of dp-accounting; the estimate is the pessimistic bound itself.

    Upper: connect-the-dots discretisation (Doroshenko et al. 2022, arXiv 2207.04380), the larger
    of both directions. Lower: the loss rounded down, which costs up to one grid step per step
    composed and is loose for long runs.
    """

    name = "pld"

    def bounds(self, events: Sequence[PoissonGaussian], delta: float) -> Bounds:
        """Bounds on the epsilon of all `events` together at `delta`."""
        rough = renyi_epsilon(events, delta)
        # connect-the-dots adds variance below interval^2/4 a step: keep it far below the loss's own
        interval = min(1e-3, min(_loss_deviation(event) for event in events) / 20)
        interval = max(interval, 2 * (rough + 3) / _GRID_POINTS)
        interval = max(interval, max(_loss_reach(event) for event in events) / _LOSS_POINTS)
        upper = self._epsilon(events, delta, interval, pessimistic=True)
        lower = self._epsilon(events, delta, interval, pessimistic=False)
        return Bounds(min(lower, upper), upper, upper)

    def _epsilon(
        self, events: Sequence[PoissonGaussian], delta: float, interval: float, *, pessimistic: bool
    ) -> float:
        total: Any = None
        for event in events:
            step = _loss(event.sampling_rate, event.noise_multiplier, interval, pessimistic)
            one = step.self_compose(event.steps)
            total = one if total is None else total.compose(one)
        return max(0.0, float(total.get_epsilon_for_delta(delta)))


class PrvAccountant:
    """Privacy random variables of prv-accountant (Gopi et al. 2021, arXiv 2106.02848).

    It prices the removal of a record, the larger direction for this mechanism. Its mesh follows
    Theorem 5.5 there for an error of 0.2 % of epsilon, at least 1e-4, and what 2^20 points allow.
    Built from the package's parts because its own `PRVAccountant` integrates the mean across the
    sharp rise of the distribution at log(1 - q), and then refuses small noise.
    """

    name = "prv"

    def bounds(self, events: Sequence[PoissonGaussian], delta: float) -> Bounds:
        """Bounds on the epsilon of all `events` together at `delta`."""
        import numpy as np
        from prv_accountant.accountant import compute_safe_domain_size
        from prv_accountant.composers import Heterogeneous
        from prv_accountant.discretisers import CellCentred
        from prv_accountant.domain import Domain

        delta_error = delta / 1000
        steps = [event.steps for event in events]
        variables = [
            _random_variable(event.sampling_rate, event.noise_multiplier) for event in events
        ]
        with np.errstate(all="ignore"):  # limits at the edges of the domain: log 0, exp -inf
            error = max(1e-4, 0.002 * renyi_epsilon(events, delta))
            reach = compute_safe_domain_size(variables, steps, error, delta_error)
            per_error = math.sqrt(sum(steps) / 2 * math.log(12 / delta_error))
            error = max(error, 2 * reach * per_error / _GRID_POINTS)
            domain = Domain.create_aligned(-reach, reach, error / per_error)
            try:
                discrete = [
                    CellCentred().discretise(_truncated(variable, event, domain), domain)
                    for variable, event in zip(variables, events, strict=True)
                ]
                loss = Heterogeneous(discrete).compute_composition(steps)
                lower, estimate, upper = loss.compute_epsilon(delta, delta_error, error)
            except (RuntimeError, ValueError) as reason:
                raise PrivacyError(
                    f"prv-accountant cannot price {describe(events)} at delta {delta:g} "
                    f"({reason}); use more noise or a larger delta"
                ) from None
        if not (math.isfinite(estimate) and lower <= estimate <= upper):
            raise PrivacyError(f"prv-accountant gave no bound for {describe(events)}")
        return Bounds(max(0.0, lower), max(0.0, estimate), max(0.0, upper))


def renyi_epsilon(events: Sequence[PoissonGaussian], delta: float) -> float:
    """The Renyi bound on epsilon (Mironov et al. 2019, arXiv 1908.10530): valid but loose.

    At integer orders alone, whose moments are finite sums.
    """
    return _renyi_epsilon(tuple(events), delta)


@lru_cache(maxsize=64)  # each bound chooses two grids by it
def _renyi_epsilon(events: tuple[PoissonGaussian, ...], delta: float) -> float:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant([*range(2, 65), 128, 256, 512])
    for event in events:
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        one = dp_event.PoissonSampledDpEvent(event.sampling_rate, gaussian)
        accountant.compose(one, event.steps)
    return float(accountant.get_epsilon(delta))


def describe(events: Sequence[PoissonGaussian]) -> str:
    """The events as a person reads them in an error."""
    return " + ".join(
        f"(q={event.sampling_rate:g}, sigma={event.noise_multiplier:g}, {event.steps} steps)"
        for event in events
    )


def _loss_deviation(event: PoissonGaussian) -> float:
    """About the deviation of one step's privacy loss: root of its order-2 Renyi divergence."""
    exponent = min(event.noise_multiplier**-2, 100.0)
    return math.sqrt(math.log1p(event.sampling_rate**2 * math.expm1(exponent)))


def _loss_reach(event: PoissonGaussian) -> float:
    """About how far one step's privacy loss reaches: eight deviations out, with the record in."""
    furthest = event.noise_multiplier**-2 / 2 + 8 / event.noise_multiplier
    # log(1 + q exp(x)), for x beyond what exp takes
    if furthest > 300:
        return max(0.0, math.log(event.sampling_rate) + furthest)
    return math.log1p(event.sampling_rate * math.exp(furthest))


@lru_cache(maxsize=8)  # a loss has up to 2^20 points
def _loss(sampling_rate: float, noise_multiplier: float, interval: float, pessimistic: bool) -> Any:
    """The discretised privacy loss of one step, which composing leaves as it is."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    return losses.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=interval,
        pessimistic_estimate=pessimistic,
        use_connect_dots=pessimistic,
    )


@lru_cache(maxsize=64)
def _random_variable(sampling_rate: float, noise_multiplier: float) -> Any:
    """The privacy loss of one step; it remembers its Renyi divergences, which size the domain."""
    from prv_accountant import privacy_random_variables as prvs

    variable: Any
    if sampling_rate == 1:
        variable = prvs.GaussianMechanism(noise_multiplier=noise_multiplier)
    else:
        variable = prvs.PoissonSubsampledGaussianMechanism(
            sampling_probability=sampling_rate, noise_multiplier=noise_multiplier
        )
    variable.rdp = lru_cache(maxsize=None)(variable.rdp)
    return variable


def _truncated(variable: Any, event: PoissonGaussian, domain: Any) -> Any:
    """`variable` cut to `domain`, with a mean that resolves the rise just above log(1 - q)."""
    import numpy as np
    from prv_accountant.privacy_random_variables import PrivacyRandomVariableTruncated
    from scipy.integrate import quad  # type: ignore[import-untyped]

    cut = PrivacyRandomVariableTruncated(variable, domain.t_min(), domain.t_max())
    decades = [sign * 10.0**k for k in range(-7, 3) for sign in (-1, 1)]
    edges = [0.0] if event.sampling_rate == 1 else [0.0, math.log1p(-event.sampling_rate)]
    inside = {edge + offset for edge in edges for offset in (0.0, *decades)}
    low, high = float(domain.t_min()), float(domain.t_max())
    points = sorted({low, high} | {point for point in inside if low < point < high})

    def mean() -> float:  # by parts: the upper end minus the integral of the distribution function
        with np.errstate(all="ignore"):
            parts = [
                quad(cut.cdf, a, b, limit=500, epsabs=1e-12, epsrel=1e-10)[0]
                for a, b in pairwise(points)
            ]
        return high - math.fsum(parts)

    cut.mean = mean
    return cut
