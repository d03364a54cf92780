"""What events cost: epsilon at a given delta, by two accountants that must agree.

`PldAccountant` (Google's dp-accounting) discretises the privacy loss so that its upper bound is
pessimistic, in both directions of adjacency; `PrvAccountant` (Microsoft's prv-accountant) states
an error around its estimate. The larger upper bound decides. Both compose numerically by FFT;
Renyi bounds, 12-16 % larger, choose the grids alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

from fedattn.errors import PrivacyError
from fedattn.privacy.events import Event, NoNoise, PoissonGaussian, merge

AGREEMENT = 0.01  # estimates may differ by this share, plus their stated errors
EPSILON_LIMIT = 1000.0  # above it nothing is protected and grids become huge
_GRID_POINTS = 1 << 20  # of one discretised privacy loss


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


@dataclass(frozen=True)
class Spend:
    """The cost of events: `epsilon` is the larger of the two upper bounds."""

    epsilon: float
    pld: Bounds
    prv: Bounds
    delta: float


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
        upper = self._epsilon(events, delta, interval, pessimistic=True)
        lower = self._epsilon(events, delta, interval, pessimistic=False)
        return Bounds(min(lower, upper), upper, upper)

    def _epsilon(
        self, events: Sequence[PoissonGaussian], delta: float, interval: float, *, pessimistic: bool
    ) -> float:
        from dp_accounting.pld import privacy_loss_distribution as losses

        total: Any = None
        for event in events:
            one = losses.from_gaussian_mechanism(
                event.noise_multiplier,
                sampling_prob=event.sampling_rate,
                value_discretization_interval=interval,
                pessimistic_estimate=pessimistic,
                use_connect_dots=pessimistic,
            ).self_compose(event.steps)
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
        variables = [_random_variable(event) for event in events]
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


def spend(events: Iterable[Event], delta: float) -> Spend:
    """The cost of all `events` at `delta`, under both accountants.

    No event costs 0; NoNoise costs infinity. PrivacyError if the accountants disagree, or if
    epsilon is so large that neither can price it.

    >>> spend([], 1e-5).epsilon, spend([NoNoise()], 1e-5).epsilon
    (0.0, inf)
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, must be in (0, 1)")
    return _spend(merge(events), delta)


@lru_cache(maxsize=1024)
def _spend(events: tuple[Event, ...], delta: float) -> Spend:
    if any(isinstance(event, NoNoise) for event in events):
        return _constant(math.inf, delta)
    gaussians = [event for event in events if isinstance(event, PoissonGaussian)]
    if not gaussians:
        return _constant(0.0, delta)
    rough = renyi_epsilon(gaussians, delta)
    if not rough <= EPSILON_LIMIT:
        raise PrivacyError(
            f"{describe(gaussians)}: epsilon is about {rough:.3g}, above {EPSILON_LIMIT:g}, which "
            "protects nothing; use more noise or fewer steps, or say `unit: none`"
        )
    pld, prv = PldAccountant().bounds(gaussians, delta), PrvAccountant().bounds(gaussians, delta)
    check_agreement(pld, prv)
    return Spend(max(pld.upper, prv.upper), pld, prv, delta)


def check_agreement(pld: Bounds, prv: Bounds) -> None:
    """PrivacyError unless the estimates agree within 1 % plus their stated errors."""
    allowed = AGREEMENT * max(pld.estimate, prv.estimate) + pld.stated_error + prv.stated_error
    if not abs(pld.estimate - prv.estimate) <= allowed:
        raise PrivacyError(
            f"the accountants disagree: PLD {pld.estimate:.6g}, PRV {prv.estimate:.6g}, allowed "
            f"difference {allowed:.2g}; neither is trusted"
        )


def would_pass(events: Iterable[Event], next_event: Event, budget: float, delta: float) -> bool:
    """Whether `next_event` on top of `events` would pass an epsilon of `budget` at `delta`."""
    return spend([*events, next_event], delta).epsilon > budget


@lru_cache(maxsize=256)
def calibrate_noise(sampling_rate: float, steps: int, delta: float, epsilon: float) -> float:
    """The smallest noise multiplier whose epsilon is at most `epsilon`, to 0.5 % of it.

    Bracketed interpolation of log(epsilon) over log(sigma), bisection where that stalls;
    PrivacyError if no sigma in [0.2, 10^6] meets the target.
    """
    if not (math.isfinite(epsilon) and 0 < epsilon <= EPSILON_LIMIT / 4):
        raise PrivacyError(f"epsilon is {epsilon}, must be above 0 and at most {EPSILON_LIMIT / 4}")
    target = math.log(0.9975 * epsilon)

    def excess(log_sigma: float, *, rough: bool = False) -> float:
        event = PoissonGaussian(sampling_rate, math.exp(log_sigma), steps)
        cost = renyi_epsilon([event], delta) if rough else spend([event], delta).epsilon
        return math.log(max(cost, 1e-300)) - target

    low, high = math.log(0.2), math.log(1e6)
    while high - low > 1e-3:  # the Renyi bound lies above: where it meets epsilon, cost is below
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle, rough=True) <= 0 else (middle, high)
    under = excess(high)
    low, over = high, under
    while over < 0 and low > math.log(0.2):  # that bound may lie far above for little noise
        low = max(low - 0.5, math.log(0.2))
        over = excess(low)
    for attempt in range(40 if over > 0 else 0):
        slope = (under - over) / (high - low)
        middle = low - over / slope if slope < 0 and attempt % 3 < 2 else (low + high) / 2
        if not low < middle < high:
            middle = (low + high) / 2
        miss = excess(middle)
        if abs(miss) <= 0.0025:
            return math.exp(middle)
        if miss > 0:
            low, over = middle, miss
        else:
            high, under = middle, miss
    raise PrivacyError(
        f"no noise multiplier from 0.2 to 10^6 reaches epsilon {epsilon:g} within 0.5 % at "
        f"q={sampling_rate:g}, {steps} steps, delta {delta:g}"
    )


def renyi_epsilon(events: Sequence[PoissonGaussian], delta: float) -> float:
    """The Renyi bound on epsilon (Mironov et al. 2019, arXiv 1908.10530): valid but loose.

    At integer orders alone, whose moments are finite sums.
    """
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


def _constant(epsilon: float, delta: float) -> Spend:
    bounds = Bounds(epsilon, epsilon, epsilon)
    return Spend(epsilon, bounds, bounds, delta)


def _loss_deviation(event: PoissonGaussian) -> float:
    """About the deviation of one step's privacy loss: root of its order-2 Renyi divergence."""
    exponent = min(event.noise_multiplier**-2, 100.0)
    return math.sqrt(math.log1p(event.sampling_rate**2 * math.expm1(exponent)))


def _random_variable(event: PoissonGaussian) -> Any:
    from prv_accountant import privacy_random_variables as prvs

    if event.sampling_rate == 1:
        return prvs.GaussianMechanism(noise_multiplier=event.noise_multiplier)
    return prvs.PoissonSubsampledGaussianMechanism(
        sampling_probability=event.sampling_rate, noise_multiplier=event.noise_multiplier
    )


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
