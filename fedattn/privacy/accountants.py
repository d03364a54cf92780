"""What an adversary sees costs epsilon at a given delta, by two accountants that must agree.

Gaussian views: PLD and PRV (`gaussian`). Skellam views: two Renyi implementations written apart
(`renyi`, `renyi_exact`). The larger upper bound decides. The two families do not mix in a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from fedattn.config import MOST_STEPS
from fedattn.errors import PrivacyError
from fedattn.privacy import renyi, renyi_exact
from fedattn.privacy.events import NoNoise, PoissonGaussian
from fedattn.privacy.gaussian import (
    Bounds,
    PldAccountant,
    PrvAccountant,
    describe,
    renyi_epsilon,
)
from fedattn.privacy.renyi import SkellamTerm
from fedattn.privacy.search import least_noise

AGREEMENT = 0.01  # estimates may differ by this share, plus their stated errors
EPSILON_LIMIT = 1000.0  # above it nothing is protected and grids become huge
# What the Gaussian accountants are asked, whatever a ledger says: beyond these they take hours, or
# raise. A lower rate and more noise cost no more than the bound and are priced as it.
LEAST_RATE = 1e-9
LEAST_NOISE, MOST_NOISE = 0.01, 1e6
LEAST_DELTA = 1e-100

View: TypeAlias = PoissonGaussian | SkellamTerm | NoNoise


@dataclass(frozen=True)
class Spend:
    """The cost of views: `epsilon` is the larger of the two upper bounds."""

    epsilon: float
    accountants: Mapping[str, Bounds]  # by name; empty where there is nothing to price
    delta: float


def spend(views: Iterable[View], delta: float) -> Spend:
    """The cost of all `views` at `delta`, under both accountants of their kind.

    No view costs 0; NoNoise costs infinity. PrivacyError if the accountants disagree, or if
    Gaussian views cost so much, or are so many, that neither can price them.

    >>> spend([], 1e-5).epsilon, spend([NoNoise()], 1e-5).epsilon
    (0.0, inf)
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, must be in (0, 1)")
    found = _spend(merge(map(_within_bounds, views)), delta)
    if isinstance(found, Spend):
        return found
    raise PrivacyError(found)


def _within_bounds(view: View) -> View:
    """A view that costs as much or more, and that the accountants can price in time."""
    if not isinstance(view, PoissonGaussian):
        return view
    return replace(
        view,
        sampling_rate=max(view.sampling_rate, LEAST_RATE),
        noise_multiplier=min(view.noise_multiplier, MOST_NOISE),
    )


def merge(views: Iterable[View]) -> tuple[View, ...]:
    """The same views with equal mechanisms joined, in one order: composition is commutative.

    >>> a = PoissonGaussian(0.1, 1.0, 2)
    >>> merge([a, NoNoise(), a, NoNoise()])
    (NoNoise(), PoissonGaussian(sampling_rate=0.1, noise_multiplier=1.0, steps=4))
    """
    steps: dict[PoissonGaussian | SkellamTerm, int] = {}
    noiseless = False
    for view in views:
        if isinstance(view, NoNoise):
            noiseless = True
        else:
            key = replace(view, steps=1)
            steps[key] = steps.get(key, 0) + view.steps
    joined = [replace(key, steps=steps[key]) for key in sorted(steps, key=repr)]
    return (*([NoNoise()] if noiseless else []), *joined)


@lru_cache(maxsize=1024)
def _spend(views: tuple[View, ...], delta: float) -> Spend | str:
    """The cost, or why there is none: a refusal, too, is found once, not in every round."""
    try:
        return _priced(views, delta)
    except PrivacyError as refusal:
        return str(refusal)


def _priced(views: tuple[View, ...], delta: float) -> Spend:
    if any(isinstance(view, NoNoise) for view in views):
        return Spend(math.inf, {}, delta)
    gaussians = [view for view in views if isinstance(view, PoissonGaussian)]
    skellams = [view for view in views if isinstance(view, SkellamTerm)]
    if gaussians and skellams:
        raise PrivacyError("Gaussian and Skellam views in one run are not priced together")
    if gaussians:
        bounds = _gaussian(gaussians, delta)
    elif skellams:
        bounds = {
            "rdp": _upper(renyi.skellam_epsilon(skellams, delta)),
            "rdp_exact": _upper(renyi_exact.skellam_epsilon(skellams, delta)),
        }
    else:
        return Spend(0.0, {}, delta)
    check_agreement(bounds)
    return Spend(max(each.upper for each in bounds.values()), bounds, delta)


def _upper(epsilon: float) -> Bounds:
    """A bound from above alone: the estimate is the bound, below it nothing is known."""
    return Bounds(0.0, epsilon, epsilon)


def _gaussian(gaussians: list[PoissonGaussian], delta: float) -> dict[str, Bounds]:
    if delta < LEAST_DELTA:
        raise PrivacyError(f"delta is {delta}, below {LEAST_DELTA:g}, where nothing bounds it")
    steps = sum(view.steps for view in gaussians)
    if steps > MOST_STEPS:
        raise PrivacyError(f"{steps:.3g} steps are above {MOST_STEPS:.0e}; run fewer")
    if any(view.noise_multiplier < LEAST_NOISE for view in gaussians):
        raise PrivacyError(
            f"{describe(gaussians)}: noise of less than {LEAST_NOISE:g} sensitivities protects "
            "nothing; use more, or say `unit: none`"
        )
    rough = renyi_epsilon(gaussians, delta)
    if not rough <= EPSILON_LIMIT:
        raise PrivacyError(
            f"{describe(gaussians)}: epsilon is about {rough:.3g}, above {EPSILON_LIMIT:g}, which "
            "protects nothing; use more noise or fewer steps, or say `unit: none`"
        )
    return {
        "pld": PldAccountant().bounds(gaussians, delta),
        "prv": PrvAccountant().bounds(gaussians, delta),
    }


def check_agreement(bounds: Mapping[str, Bounds]) -> None:
    """PrivacyError unless the estimates agree within 1 % plus their stated errors."""
    estimates = [each.estimate for each in bounds.values()]
    if all(math.isinf(estimate) for estimate in estimates):
        return
    allowed = AGREEMENT * max(estimates) + sum(each.stated_error for each in bounds.values())
    if not (max(estimates) - min(estimates) <= allowed < math.inf):
        shown = ", ".join(f"{name} {each.estimate:.6g}" for name, each in bounds.items())
        raise PrivacyError(
            f"the accountants disagree: {shown}, allowed difference {allowed:.2g}; "
            "neither is trusted"
        )


@lru_cache(maxsize=256)
def calibrate_noise(sampling_rate: float, steps: int, delta: float, epsilon: float) -> float:
    """The least noise multiplier of four digits whose `steps` cost at most `epsilon`.

    Of Gaussian steps; `calibration` does it for every kind of round. PrivacyError if no multiplier
    from 0.1 to 10^6 will do.
    """
    if not (math.isfinite(epsilon) and 0 < epsilon <= EPSILON_LIMIT / 4):
        raise PrivacyError(f"epsilon is {epsilon}, must be above 0 and at most {EPSILON_LIMIT / 4}")

    def cost(noise_multiplier: float) -> float:
        return spend([PoissonGaussian(sampling_rate, noise_multiplier, steps)], delta).epsilon

    return least_noise(cost, epsilon)[0]
