"""Events are data: strict on the way in, equal on the way back, derived from the config alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedattn.errors import PrivacyError
from fedattn.mechanism import Mechanism, threshold_of
from fedattn.privacy.events import (
    Event,
    GaussianSum,
    NoNoise,
    PoissonGaussian,
    SkellamSum,
    event_from_dict,
    event_to_dict,
    round_event,
)
from tests.run_builder import PRETENDS, config, sampled, summed

RATES, NOISES = st.floats(1e-6, 1.0), st.floats(1e-3, 1e6)
COUNTS = st.integers(1, 10**6)
EVENTS = st.one_of(
    st.builds(PoissonGaussian, RATES, NOISES, COUNTS),
    st.builds(SkellamSum, *[NOISES] * 2, COUNTS, *[NOISES] * 4, *[RATES] * 2, COUNTS),
    st.builds(GaussianSum, *[NOISES] * 2, *[RATES] * 2),
    st.just(NoNoise()),
)


@given(EVENTS)
def test_events_survive_json(event: Event) -> None:
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


GOOD = {"kind": "poisson_gaussian", "sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 5}

SUM = event_to_dict(round_event(summed(), 10))
GAUSSIAN = event_to_dict(round_event(summed(noise="server"), 10))


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
        ({**SUM, "l2": 0}, "l2"),
        ({**SUM, "share_variance": -1.0}, "share_variance"),
        ({**SUM, "honest_variance": float("inf")}, "honest_variance"),
        ({**SUM, "client_rate": 0}, "client_rate"),
        ({**SUM, "coordinates": 1.5}, "coordinates"),
        ({**GAUSSIAN, "variance": 0.0}, "variance"),
    ],
)
def test_a_wrong_event_is_named(raw: object, named: str) -> None:
    with pytest.raises(PrivacyError, match=named):
        event_from_dict(raw)


def test_a_round_is_what_the_config_says() -> None:
    assert round_event(config(), 10) == PoissonGaussian(0.1, 1.0, 3)
    assert round_event(config(unit="none", noise="none", epsilon_budget=None), 10) == NoNoise()


def test_a_sum_states_its_sensitivity_and_each_adversarys_guaranteed_noise() -> None:
    chosen = summed()  # four clients, three survivors needed, one may collude
    event, mechanism = round_event(chosen, 10), Mechanism(chosen, 10)
    assert isinstance(event, SkellamSum)
    mu = (chosen.privacy.noise_multiplier * mechanism.grid_scale * chosen.privacy.clip_norm) ** 2
    assert event.honest_variance == pytest.approx(mu)
    assert event.share_variance == pytest.approx(mu / (3 - 1))
    assert event.participant_variance == pytest.approx(mu * (3 - 1) / (3 - 1))
    assert event.released_variance == pytest.approx(mu * 3 / (3 - 1))
    assert (event.record_rate, event.client_rate) == (chosen.privacy.sampling_rate, 1.0)
    assert (event.l2, event.coordinates) == (mechanism.l2, mechanism.padded)
    assert event.l2 > mechanism.clip  # rounding costs


def test_guaranteed_noise_is_that_of_the_worst_cohort_a_sampled_run_accepts() -> None:
    chosen = sampled()
    event = round_event(chosen, 10)
    assert isinstance(event, SkellamSum)
    mu = event.honest_variance
    for n in range(chosen.secagg.threshold, chosen.data.clients + 1):
        t, share = threshold_of(chosen, n), Mechanism(chosen, 10).share_variance(n)
        assert (t - chosen.secagg.max_colluding) * share >= mu * (1 - 1e-12)
        assert (t - 1) * share >= event.participant_variance * (1 - 1e-12)
        assert share >= event.share_variance * (1 - 1e-12)
        assert n * share <= event.released_variance * (1 + 1e-12)  # topped up to it, never above


def test_the_servers_own_noise_is_one_gaussian() -> None:
    event = round_event(summed(noise="server"), 10)
    assert isinstance(event, GaussianSum)
    honest = round_event(summed(), 10)
    assert isinstance(honest, SkellamSum)
    assert (event.l2, event.variance) == (honest.l2, honest.honest_variance)  # at equal noise


def test_a_pretended_cohort_scales_the_noise_of_the_event_down() -> None:
    real, pretended = round_event(sampled(), 10), round_event(sampled(hypothetical=PRETENDS), 10)
    assert isinstance(real, SkellamSum)
    assert isinstance(pretended, SkellamSum)
    expected = replace(
        real,
        **{
            name: getattr(real, name) * (4 / 500) ** 2  # four clients expected, 500 pretended
            for name in (
                "released_variance",
                "participant_variance",
                "honest_variance",
                "share_variance",
            )
        },
    )
    for name, value in event_to_dict(expected).items():
        stated = event_to_dict(pretended)[name]
        assert stated == value or math.isclose(stated, value, rel_tol=1e-12)


def test_noise_whose_grid_is_too_coarse_for_the_margin_is_refused() -> None:
    local = config(noise_multiplier=20.0)
    round_event(local, 10**6)
    with pytest.raises(PrivacyError, match=r"grid moves sums by .* of clip_norm"):
        round_event(local, 10**7)
