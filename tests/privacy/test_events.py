"""Events are data: strict on the way in, equal on the way back, joined without changing cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedattn.errors import PrivacyError
from fedattn.privacy.events import (
    Event,
    NoNoise,
    PoissonGaussian,
    event_from_dict,
    event_to_dict,
    merge,
    round_event,
)
from tests.run_builder import config

RATES, NOISES = st.floats(1e-6, 1.0), st.floats(1e-3, 1e6)
EVENTS = st.one_of(
    st.builds(PoissonGaussian, RATES, NOISES, st.integers(1, 10**6)), st.just(NoNoise())
)


@given(EVENTS)
def test_events_survive_json(event: Event) -> None:
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


@given(st.lists(EVENTS, max_size=6), st.randoms())
def test_merging_keeps_steps_ignores_order_and_is_idempotent(events: list[Event], r: Any) -> None:
    merged = merge(events)
    shuffled = list(events)
    r.shuffle(shuffled)
    assert merge(shuffled) == merged == merge(merged)
    assert sum(e.steps for e in merged if isinstance(e, PoissonGaussian)) == sum(
        e.steps for e in events if isinstance(e, PoissonGaussian)
    )


GOOD = {"kind": "poisson_gaussian", "sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 5}


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ([], "object"),
        ({}, "unknown kind"),
        ({**GOOD, "kind": "skellam"}, "skellam"),
        ({**GOOD, "extra": 1}, "extra"),
        ({"kind": "poisson_gaussian"}, "steps"),
        ({**GOOD, "sampling_rate": 0}, "sampling_rate"),
        ({**GOOD, "sampling_rate": 1.1}, "sampling_rate"),
        ({**GOOD, "sampling_rate": float("nan")}, "sampling_rate"),
        ({**GOOD, "sampling_rate": "0.1"}, "sampling_rate"),
        ({**GOOD, "noise_multiplier": 0.0}, "noise_multiplier"),
        ({**GOOD, "noise_multiplier": float("inf")}, "noise_multiplier"),
        ({**GOOD, "steps": 5.0}, "steps"),
        ({**GOOD, "steps": True}, "steps"),
        ({"kind": "no_noise", "steps": 1}, "steps"),
    ],
)
def test_a_wrong_event_is_named(raw: object, named: str) -> None:
    with pytest.raises(PrivacyError, match=named):
        event_from_dict(raw)


def test_a_round_is_what_the_config_says() -> None:
    assert round_event(config()) == PoissonGaussian(0.1, 1.0, 3)
    assert round_event(config(unit="none", noise="none", epsilon_budget=None)) == NoNoise()
