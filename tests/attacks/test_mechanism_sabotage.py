"""Each sabotage of the mechanism that leaves no trace in a ledger is caught by a named check.

Every check of `mechanism_checks` runs twice: it passes the mechanism as it is, and rejects each
sabotage for the stated reason. All of it is seeded, so neither happens by chance. Sabotages that
events and reports show: tests/test_audit_accounting.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedattn.clipping
import fedattn.clipping.optimizer
import fedattn.encoding
import fedattn.flower.training
import fedattn.policy.rules
import fedattn.report.files
import fedattn.train
from fedattn.batches import Record
from fedattn.flower.cohorts import Cohorts
from fedattn.flower.enrolment import Member
from fedattn.mechanism import Mechanism
from fedattn.noise import add_gaussian, add_gaussian_to
from fedattn.randomness import Randomness
from fedattn.skellam import SkellamSampler
from tests.attacks.mechanism_checks import (
    CHECKS,
    RejectedError,
    check_budget,
    check_client_sensitivity,
    check_clients_are_poisson,
    check_clients_weigh_alike,
    check_conversation_sensitivity,
    check_conversations_count_each,
    check_dither,
    check_honest_minimum,
    check_public_divisor,
    check_records_are_poisson,
    check_released_noise,
    check_sampled_noise,
    check_steps_noise,
)


@pytest.mark.parametrize("check", CHECKS)
def test_the_mechanism_is_the_one_that_its_event_states(check: str) -> None:
    CHECKS[check]()


def test_all_rounds_together_stay_within_the_budget(tmp_path: Path) -> None:
    check_budget(tmp_path)


# ---- sabotages


class WeakSampler(SkellamSampler):
    """A tenth of the deviation."""

    def __init__(self, variance: float) -> None:
        super().__init__(variance / 100)


def weaken_gaussian_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        fedattn.encoding,
        "add_gaussian",
        lambda values, std, coins, **how: add_gaussian(values, std / 10, coins, **how),
    )
    patch.setattr(
        fedattn.clipping.optimizer,
        "add_gaussian_to",
        lambda arrays, std, coins, **how: add_gaussian_to(arrays, std / 10, coins, **how),
    )


def clip_nothing(patch: pytest.MonkeyPatch) -> None:
    honest = fedattn.clipping.ClippedSum.__init__
    patch.setattr(
        fedattn.clipping.ClippedSum,
        "__init__",
        lambda self, parameters, clip_norm, *rest: honest(self, parameters, 1e6 * clip_norm, *rest),
    )


def clip_the_batch(patch: pytest.MonkeyPatch) -> None:
    """Sum first, then clip the sum: what many a training loop's `clip_grad_norm_` does."""
    clip_nothing(patch)
    honest = fedattn.clipping.ClippedSum.vector

    def vector(self: Any) -> torch.Tensor:
        total = honest(self)
        limit = self.clip_norm / 1e6
        return total * min(1.0, limit / max(float(total.norm()), 1e-30))

    patch.setattr(fedattn.clipping.ClippedSum, "vector", vector)


def round_without_bound(y: np.ndarray, _bound: float, randomness: Randomness) -> np.ndarray:
    return np.floor(y + randomness.uniform(y.size)).astype(np.int64)


def clip_no_update(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fedattn.encoding, "clip_l2", lambda x, _norm: np.nan_to_num(x))


def clip_no_update_and_bound_no_rounding(patch: pytest.MonkeyPatch) -> None:
    clip_no_update(patch)
    patch.setattr(fedattn.encoding, "round_with_retry", round_without_bound)


def take_a_fixed_number(held: Sequence[Any], rate: float, randomness: Randomness) -> list[Any]:
    order = np.argsort(randomness.words(len(held)))
    return [held[i] for i in order[: round(rate * len(held))]]


def take_all_or_nothing(held: Sequence[Any], rate: float, randomness: Randomness) -> list[Any]:
    return list(held) if randomness.uniform(1)[0] < rate else []


def take_at_twice_the_rate(held: Sequence[Any], rate: float, randomness: Randomness) -> list[Any]:
    return [x for x, u in zip(held, randomness.uniform(len(held)), strict=True) if u < 2 * rate]


def take_until_there_is_one(held: Sequence[Any], rate: float, randomness: Randomness) -> list[Any]:
    while True:
        chosen = [x for x, u in zip(held, randomness.uniform(len(held)), strict=True) if u < rate]
        if chosen or not held:
            return chosen


def draw_a_fixed_number(self: Cohorts) -> list[Member]:
    return sorted(take_a_fixed_number(self.members, 0.5, self._randomness))


def draw_in_turns(self: Cohorts) -> list[Member]:
    """Each client at rate 1/2 and sizes that vary; but who was asked is not asked next."""
    last: set[int] = getattr(self, "last", set())
    if last:
        chosen = [m for m in self.members if m.node not in last]
        self.last = set()  # type: ignore[attr-defined]
        return chosen
    chosen = take_at_twice_the_rate(self.members, 0.25, self._randomness)
    self.last = {m.node for m in chosen}  # type: ignore[attr-defined]
    return chosen


def skip_empty_steps(patch: pytest.MonkeyPatch) -> None:
    honest = fedattn.train._PrivateSteps.take

    def take(self: Any, held: Sequence[Record]) -> None:
        if held:
            honest(self, held)

    patch.setattr(fedattn.train._PrivateSteps, "take", take)


def weigh_by_count(patch: pytest.MonkeyPatch) -> None:
    honest = fedattn.train._client_change
    patch.setattr(
        fedattn.train,
        "_client_change",
        lambda steps, held, names: honest(steps, held, names) * len(held),
    )


def toss_own_dither(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        fedattn.encoding, "shared_dither", lambda _seed, n, _label: Randomness.from_os().uniform(n)
    )


def same_dither_for_all(patch: pytest.MonkeyPatch) -> None:
    honest = fedattn.encoding.shared_dither
    patch.setattr(fedattn.encoding, "shared_dither", lambda seed, n, _label: honest(seed, n, "1"))


def constant_dither(value: float) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(
        fedattn.encoding, "shared_dither", lambda _seed, n, _label: np.full(n, value)
    )


def start_accounting_anew(patch: pytest.MonkeyPatch) -> None:
    """Server and devices alike see the last round alone."""
    for module in (fedattn.flower.training, fedattn.policy.rules):
        honest = module.passed_budgets
        patch.setattr(
            module,
            "passed_budgets",
            lambda made, d, events, honest=honest: honest(made, d, events[-1:]),
        )


def report_the_last_round(patch: pytest.MonkeyPatch) -> None:
    honest = fedattn.report.files.spends
    patch.setattr(fedattn.report.files, "spends", lambda made, events: honest(made, events[-1:]))


def replacing(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, value)


@dataclass(frozen=True)
class Sabotage:
    """What is done to the package, which check finds it, and on which ground."""

    apply: Callable[[pytest.MonkeyPatch], None]
    check: Callable[..., None]
    reason: str


SABOTAGES: dict[str, Sabotage] = {
    "noise over ten, devices' shares": Sabotage(
        replacing(fedattn.encoding, "SkellamSampler", WeakSampler),
        check_released_noise,
        "conversation/distributed: released variance",
    ),
    "noise over ten, server": Sabotage(
        weaken_gaussian_noise, check_released_noise, "conversation/server: released variance"
    ),
    "noise over ten, devices' steps": Sabotage(
        weaken_gaussian_noise, check_steps_noise, "variance of a device's steps"
    ),
    "clip off, conversations": Sabotage(
        clip_nothing, check_conversation_sensitivity, "l2 sensitivity of a conversation"
    ),
    "clip off, clients": Sabotage(
        clip_no_update_and_bound_no_rounding,
        check_client_sensitivity,
        "l2 sensitivity of a client",
    ),
    # what is too long is then rounded to zero: it costs utility, not privacy
    "clip off, clients, rounding bounded": Sabotage(
        clip_no_update, check_client_sensitivity, "a long update counts for less than C"
    ),
    "rounding not retried": Sabotage(
        replacing(fedattn.encoding, "round_with_retry", round_without_bound),
        check_client_sensitivity,
        "l2 sensitivity of a client",
    ),
    "clip per batch": Sabotage(
        clip_the_batch, check_conversations_count_each, "weight of 7 conversations"
    ),
    "clip per batch, a record that outweighs it": Sabotage(
        clip_the_batch, check_conversation_sensitivity, "l2 sensitivity of a conversation"
    ),
    "records: a fixed number": Sabotage(
        replacing(fedattn.train, "poisson_sample", take_a_fixed_number),
        check_records_are_poisson,
        "empty batches",
    ),
    "records: all or nothing": Sabotage(
        replacing(fedattn.train, "poisson_sample", take_all_or_nothing),
        check_records_are_poisson,
        "empty batches",
    ),
    "records: twice the rate": Sabotage(
        replacing(fedattn.train, "poisson_sample", take_at_twice_the_rate),
        check_records_are_poisson,
        "empty batches|record rate",
    ),
    "clients: a fixed number": Sabotage(
        replacing(Cohorts, "draw", draw_a_fixed_number),
        check_clients_are_poisson,
        "cohort sizes are not binomial",
    ),
    "clients: in turns": Sabotage(
        replacing(Cohorts, "draw", draw_in_turns),
        check_clients_are_poisson,
        "cohorts depend on the one before",
    ),
    "empty batches dropped, steps": Sabotage(
        skip_empty_steps, check_steps_noise, "variance of a device's steps"
    ),
    "empty batches dropped, drawn again": Sabotage(
        replacing(fedattn.train, "poisson_sample", take_until_there_is_one),
        check_records_are_poisson,
        "empty batches",
    ),
    "accountant reset each round": Sabotage(
        start_accounting_anew, check_budget, "5 rounds pass the budget"
    ),
    "accountant reset each round, in the report": Sabotage(
        report_the_last_round, check_budget, "the report states less"
    ),
    "weights by count": Sabotage(
        weigh_by_count, check_clients_weigh_alike, "weight of a client that holds more"
    ),
    "dither replaced by own coins": Sabotage(toss_own_dither, check_dither, "not public"),
    "dither replaced by one for all": Sabotage(
        same_dither_for_all, check_dither, "rounding error of 8"
    ),
    "dither replaced by the floor": Sabotage(
        constant_dither(0.0), check_dither, "rounding error of 1"
    ),
    "dither replaced by the nearest": Sabotage(
        constant_dither(0.5), check_dither, "rounding error of 1"
    ),
    "share sized for all n": Sabotage(
        replacing(Mechanism, "share_variance", lambda self, cohort: self.variance / cohort),
        check_honest_minimum,
        "honest variance",
    ),
    "share sized for the threshold, colluders counted": Sabotage(
        replacing(
            Mechanism,
            "share_variance",
            lambda self, cohort: self.variance / self.config.secagg.threshold,
        ),
        check_honest_minimum,
        "honest variance",
    ),
    "top-up of sampled rounds dropped": Sabotage(
        replacing(Mechanism, "released_variance", 0.0), check_sampled_noise, "sampled variance"
    ),
    "sampled rounds divided by survivors": Sabotage(
        replacing(Mechanism, "divisor", lambda self, survivors: float(survivors)),
        check_public_divisor,
        "sampled divisor, 16 of 20",
    ),
    "steps divided by survivors": Sabotage(
        replacing(
            Mechanism,
            "divisor",
            lambda self, survivors: float(survivors) if self.config.is_one_step else 20.0,
        ),
        check_public_divisor,
        "one-step divisor",
    ),
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_sabotaged_mechanism_is_rejected(
    sabotage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = SABOTAGES[sabotage]
    done.apply(monkeypatch)
    with pytest.raises(RejectedError, match=done.reason):
        done.check(*([tmp_path] if done.check is check_budget else []))


def test_no_check_is_there_for_show() -> None:
    """Each rejects at least one sabotage."""
    assert {sabotage.check for sabotage in SABOTAGES.values()} == {*CHECKS.values(), check_budget}
