"""What is remembered of a step, which a run prices every round, changes no number, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from fedattn.privacy import accountants, gaussian
from fedattn.privacy.accountants import spend
from fedattn.privacy.events import PoissonGaussian
from fedattn.privacy.gaussian import PldAccountant, PrvAccountant, renyi_epsilon

DELTA = 1e-5
CACHES = (
    accountants._spend,
    gaussian._loss,
    gaussian._random_variable,
    gaussian._renyi_epsilon,
)


def forget() -> None:
    for cache in CACHES:
        cache.cache_clear()


def pld_twin(events: Sequence[PoissonGaussian], delta: float) -> tuple[float, float]:
    """Lower and upper of `PldAccountant`, every loss made anew."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    rough = renyi_epsilon(events, delta)
    interval = min(1e-3, min(gaussian._loss_deviation(event) for event in events) / 20)
    interval = max(interval, 2 * (rough + 3) / (1 << 20))
    found = []
    for pessimistic in (False, True):
        composed = [
            losses.from_gaussian_mechanism(
                event.noise_multiplier,
                sampling_prob=event.sampling_rate,
                value_discretization_interval=interval,
                pessimistic_estimate=pessimistic,
                use_connect_dots=pessimistic,
            ).self_compose(event.steps)
            for event in events
        ]
        total = composed[0]
        for one in composed[1:]:
            total = total.compose(one)
        found.append(max(0.0, float(total.get_epsilon_for_delta(delta))))
    return min(found), found[1]


RUNS = [
    [[PoissonGaussian(0.2, 0.858, 2 * n)] for n in (1, 2, 5, 1)],  # the quickstart's rounds
    [[PoissonGaussian(1.0, 3.0, n)] for n in (1, 4)],  # no sampling
    [[PoissonGaussian(0.05, 0.7, n), PoissonGaussian(0.2, 1.5, 3)] for n in (1, 9)],
]


@pytest.mark.parametrize("run", RUNS, ids=["one kind", "unsampled", "two kinds"])
def test_a_price_is_the_same_whatever_was_priced_before(run: list[list[PoissonGaussian]]) -> None:
    forget()
    remembered = []
    for events in run:
        accountants._spend.cache_clear()  # so that each is computed, from remembered steps
        remembered.append(spend(events, DELTA))
    assert gaussian._loss.cache_info().hits > 0
    for events, before in zip(reversed(run), reversed(remembered), strict=True):
        forget()
        afresh = spend(events, DELTA)
        assert afresh == before
        assert math.isfinite(afresh.epsilon)
        pld = afresh.accountants["pld"]
        assert (pld.lower, pld.upper) == pld_twin(events, DELTA)


def test_composing_leaves_the_remembered_step_as_it_was() -> None:
    forget()
    step = [PoissonGaussian(0.1, 1.0, 1)]
    first = PldAccountant().bounds(step, DELTA), PrvAccountant().bounds(step, DELTA)
    for steps in (7, 64):
        PldAccountant().bounds([PoissonGaussian(0.1, 1.0, steps)], DELTA)
        PrvAccountant().bounds([PoissonGaussian(0.1, 1.0, steps)], DELTA)
    assert (PldAccountant().bounds(step, DELTA), PrvAccountant().bounds(step, DELTA)) == first
