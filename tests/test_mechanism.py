"""What a config's mechanism promises about every round that it accepts, and what it refuses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedattn import modulus
from fedattn.config import Config, config_from_dict
from fedattn.errors import ConfigError, PrivacyError, UpdateError
from fedattn.mechanism import Mechanism, check_mechanism, hypothetical_world, threshold_of
from fedattn.privacy.events import GaussianSum, SkellamSum, round_event
from fedattn.rotation import block_size
from fedattn.rounding import dithered_l2_bound, l1_bound, sum_variance_proxy
from tests.summed import config

NEARLY = 1e-12  # relative: of doubles that were multiplied and divided


def sampled(noise: str = "distributed", **privacy: Any) -> Config:
    return config(
        noise=noise,
        data={"clients": 40},
        privacy={"client_rate": 0.5, **privacy},
        secagg={"threshold": 10, "max_colluding": 2},
    )


@st.composite
def configs(draw: st.DrawFn, noise: str | None = None) -> Config:
    """Any accepted config with noise on the sum: both units, sampled clients or all of them."""
    unit = draw(st.sampled_from(["client", "conversation"]))
    noise = noise or draw(st.sampled_from(["distributed", "server"]))
    n = draw(st.integers(3, 120))
    is_sampled = unit == "client" and draw(st.booleans())
    c = draw(st.integers(1, max(1, n // 6)))
    lost = draw(st.sampled_from([0.0, 0.05, 0.1, 0.3]))
    rate = draw(st.floats(0.3, 0.95)) if is_sampled else 1.0
    least = c + 2 if is_sampled else (n + c) // 2 + 1
    most = math.floor(n * rate * (1 - lost)) if is_sampled else n - int(lost * n)
    assume(least <= most)
    return config(
        unit,
        noise,
        data={"clients": n},
        privacy={
            "client_rate": rate,
            "clip_norm": draw(st.floats(0.01, 5)),
            "noise_multiplier": draw(st.floats(0.2, 4)),
        },
        secagg={
            "threshold": draw(st.integers(least, most)),
            "max_colluding": c,
            "dropout_share": lost,
        },
    )


dimensions = st.integers(1, 300_000)


def cohorts(made: Config) -> range:
    """Sizes of cohorts that a round is run with."""
    n = made.data.clients
    return range(made.secagg.threshold if made.privacy.client_rate < 1 else n, n + 1)


def test_without_noise_on_the_sum_there_is_no_mechanism() -> None:
    for made in (
        config("conversation", "local"),
        config_from_dict(
            {
                **config().model_dump(),
                "privacy": {"unit": "none", "noise": "none", "sampling_rate": 0.5},
            }
        ),
    ):
        with pytest.raises(PrivacyError, match=r"privacy\.noise is .*no noise on the sum"):
            Mechanism(made, 10)
        check_mechanism(made, 10)  # and nothing to refuse


# ---- noise


@settings(max_examples=60, deadline=None)
@given(configs(noise="distributed"), dimensions)
def test_any_accepted_honest_survivors_add_the_noise_that_is_priced(made: Config, d: int) -> None:
    mechanism, c = Mechanism(made, d), made.secagg.max_colluding
    event = round_event(made, d)
    assert isinstance(event, SkellamSum)
    sigma_sc = made.privacy.noise_multiplier * mechanism.clip
    assert event.honest_variance == pytest.approx(sigma_sc**2, rel=NEARLY)
    for n in cohorts(made):
        share = mechanism.share_variance(n)
        for survivors in {threshold_of(made, n), n}:
            present = survivors * share
            assert (survivors - c) * share >= event.honest_variance * (1 - NEARLY)
            assert (survivors - 1) * share >= event.participant_variance * (1 - NEARLY)
            assert share >= event.share_variance * (1 - NEARLY)
            if mechanism.is_sampled:  # topped up to one level, which no cohort is above
                assert present <= event.released_variance * (1 + NEARLY)
            else:
                assert present >= event.released_variance * (1 - NEARLY)


@settings(max_examples=60, deadline=None)
@given(configs(noise="distributed"), dimensions)
def test_the_priced_variances_are_met_by_some_round_and_none_is_understated(
    made: Config, d: int
) -> None:
    """Not too much noise either: what is priced is what the worst accepted round has."""
    mechanism, c = Mechanism(made, d), made.secagg.max_colluding
    shares = {n: mechanism.share_variance(n) for n in cohorts(made)}
    least = {n: threshold_of(made, n) for n in shares}
    close = {"rel": 1e-9}
    assert mechanism.variance == pytest.approx(
        min((least[n] - c) * share for n, share in shares.items()), **close
    )
    assert mechanism.participant_variance == pytest.approx(
        min((least[n] - 1) * share for n, share in shares.items()), **close
    )
    assert mechanism.smallest_share == pytest.approx(min(shares.values()), **close)
    counted = max if mechanism.is_sampled else min
    assert mechanism.released_variance == pytest.approx(
        counted((n if mechanism.is_sampled else least[n]) * share for n, share in shares.items()),
        **close,
    )
    rows = [
        mechanism.smallest_share,
        mechanism.variance,
        mechanism.participant_variance,
        mechanism.released_variance,
    ]
    assert all(a <= b * (1 + NEARLY) for a, b in itertools.pairwise(rows))


@settings(max_examples=30, deadline=None)
@given(configs(noise="server"), dimensions)
def test_the_servers_noise_is_one_level_and_no_share_of_it_is_on_a_device(
    made: Config, d: int
) -> None:
    mechanism, event = Mechanism(made, d), round_event(made, d)
    assert isinstance(event, GaussianSum)
    assert mechanism.released_variance == mechanism.variance == event.variance
    assert {mechanism.share_variance(n) for n in cohorts(made)} == {0.0}
    # the sensitivity is that of integers: noise over it is a little less than the multiplier
    ratio = math.sqrt(event.variance) / event.l2
    assert ratio < made.privacy.noise_multiplier
    assert ratio > made.privacy.noise_multiplier / 1.1


@settings(max_examples=40, deadline=None)
@given(configs(), dimensions, st.floats(1.05, 10))
def test_more_noise_is_more_variance_in_every_row_and_never_fewer_bits(
    made: Config, d: int, factor: float
) -> None:
    sigma = made.privacy.noise_multiplier
    louder = config_from_dict(
        {
            **made.model_dump(),
            "privacy": {**made.privacy.model_dump(), "noise_multiplier": sigma * factor},
        }
    )
    one, two = Mechanism(made, d), Mechanism(louder, d)
    for name in ("variance", "released_variance"):
        assert getattr(two, name) == pytest.approx(getattr(one, name) * factor**2, rel=1e-9)
    assert (two.l2, two.l1, two.clip) == (one.l2, one.l1, one.clip)
    n = made.data.clients
    try:
        enough = two.modulus_bits(n)
    except UpdateError:
        return
    assert one.modulus_bits(n) <= enough


# ---- thresholds


@settings(max_examples=60, deadline=None)
@given(configs())
def test_every_cohort_has_a_quorum_that_tolerates_its_dropouts(made: Config) -> None:
    c, lost = made.secagg.max_colluding, made.secagg.dropout_share
    before = 0
    for n in cohorts(made):
        needed = threshold_of(made, n)
        assert made.secagg.threshold <= needed <= n
        assert 2 * needed > n + c  # two disjoint sets of survivors cannot both be unmasked
        assert needed > c  # some honest share is always there
        if made.privacy.client_rate == 1:
            assert needed == made.secagg.threshold
        else:
            quorum = max(made.secagg.threshold, (n + c) // 2 + 1)
            assert needed == max(quorum, math.ceil(n - lost * n - 1e-9))
        assert needed >= before  # a larger cohort never needs fewer
        before = needed


# ---- the grid


@given(dimensions, st.floats(2.0**-10, 100))
def test_rounding_costs_one_percent_where_a_round_is_one_step(d: int, clip_norm: float) -> None:
    mechanism = Mechanism(config("conversation", privacy={"clip_norm": clip_norm}), d)
    assert mechanism.clip == pytest.approx(100 * math.sqrt(mechanism.padded))
    assert mechanism.l2 == dithered_l2_bound(mechanism.clip, mechanism.padded)
    assert mechanism.l2 <= 1.01 * mechanism.clip * (1 + NEARLY)


@given(dimensions, st.floats(2.0**-10, 100))
def test_rounding_a_client_costs_less_than_half_a_percent_of_a_large_model(
    d: int, clip_norm: float
) -> None:
    """Of a short vector more: a constant of the concentration bound shows."""
    mechanism = Mechanism(config(privacy={"clip_norm": clip_norm}), d)
    steps = mechanism.clip / math.sqrt(mechanism.padded)
    assert steps == pytest.approx(6)
    over = mechanism.l2 / mechanism.clip - 1
    assert 0 < over <= 1 / (8 * steps**2) + 0.091 / math.sqrt(mechanism.padded)
    if mechanism.padded >= 4096:
        assert over < 0.005


@given(configs(), dimensions)
def test_the_l1_norm_is_the_largest_that_integers_of_the_l2_norm_have(made: Config, d: int) -> None:
    mechanism = Mechanism(made, d)
    assert mechanism.l1 == l1_bound(mechanism.l2, mechanism.padded)
    assert mechanism.padded >= d
    assert mechanism.padded <= max(2 * d, 1.05 * d)
    if d > 1024:
        assert mechanism.padded <= 1.05 * d


def test_a_stated_grid_is_used_and_a_coarser_one_costs_more() -> None:
    scales = [Mechanism(config(secagg={"grid_scale": s}), 500) for s in (8.0, 80.0, 800.0)]
    assert [each.grid_scale for each in scales] == [8.0, 80.0, 800.0]
    over = [each.l2 / each.clip for each in scales]
    assert over == sorted(over, reverse=True)
    assert over[0] > 2


# ---- the modulus


@settings(max_examples=60, deadline=None)
@given(configs(), dimensions)
def test_the_modulus_is_the_least_at_which_no_round_wraps(made: Config, d: int) -> None:
    mechanism = Mechanism(made, d)
    for n in (cohorts(made)[0], cohorts(made)[-1]):
        units = made.privacy.max_units if made.is_one_step else n
        # noise of every share that may be there: more than the fewest survivors bring
        noise = n * mechanism.share_variance(n)
        spread = sum_variance_proxy(units * mechanism.clip, block_size(mechanism.dimension), noise)

        def wraps(bits: int, n: int = n, spread: float = spread) -> float:
            return modulus.wrap_probability(bits, float(n), spread, mechanism.padded)

        try:
            bits = mechanism.modulus_bits(n)
        except UpdateError:
            assert wraps(32) > 2.0**-20
            continue
        assert wraps(bits) <= 2.0**-20
        assert bits == 8 or wraps(bits - 1) > 2.0**-20


def test_a_modulus_too_small_is_refused_with_the_one_that_is_enough() -> None:
    made = config(secagg={"modulus_bits": 10})
    enough = Mechanism(config(), 5000).modulus_bits(8)
    with pytest.raises(UpdateError) as refused:
        check_mechanism(made, 5000)
    text = str(refused.value)
    assert text.startswith("secagg.modulus_bits: ")
    assert text.endswith(f"or use modulus_bits {enough}")
    assert "wrap with probability" in text
    check_mechanism(config(secagg={"modulus_bits": enough}), 5000)
    check_mechanism(config(secagg={"modulus_bits": 32}), 5000)


def test_a_sum_that_no_modulus_holds_is_refused_before_anyone_is_contacted() -> None:
    with pytest.raises(UpdateError, match=r"secagg\.modulus_bits: .*lower grid_scale"):
        check_mechanism(config(secagg={"grid_scale": 2.0**33}), 5000)


# ---- the divisor


def test_what_a_sum_is_divided_by_is_public() -> None:
    steps = Mechanism(config("conversation"), 10)
    assert {steps.divisor(survivors) for survivors in (6, 7, 8)} == {10.0}
    drawn = Mechanism(sampled(), 10)
    assert {drawn.divisor(survivors) for survivors in (10, 16, 30)} == {20.0}
    everybody = Mechanism(config(), 10)  # where all take part, how many survived is in the ledger
    assert [everybody.divisor(survivors) for survivors in (6, 8)] == [6.0, 8.0]


# ---- cohorts that are pretended


def hypothetical(cohort: int, population: int, **changes: Any) -> Config:
    return config(privacy={"hypothetical": {"cohort": cohort, "population": population}}, **changes)


@given(st.integers(8, 5000), dimensions)
def test_a_pretended_cohort_has_the_noise_of_its_mean_on_ours(cohort: int, d: int) -> None:
    made = hypothetical(cohort, 10_000)
    real, pretended = Mechanism(config(), d), Mechanism(made, d)
    assert pretended.noise_factor == pytest.approx(8 / cohort)
    # sigma C / N on the mean of N clients is sigma C n / N on the sum of n
    assert math.sqrt(pretended.variance) / 8 == pytest.approx(
        math.sqrt(real.variance) / cohort, rel=1e-9
    )
    assert (pretended.l2, pretended.grid_scale) == (real.l2, real.grid_scale)


def test_a_pretended_world_keeps_the_shares_of_threshold_and_collusion() -> None:
    made = hypothetical(400, 10_000)
    world = hypothetical_world(made)
    assert world is not None
    assert world.privacy.hypothetical is None
    assert (world.data.clients, world.privacy.client_rate) == (10_000, 0.04)
    assert (world.secagg.threshold, world.secagg.max_colluding) == (300, 50)  # 6/8 and 1/8 of 400
    assert Mechanism(world, 10).noise_factor == 1.0
    assert Mechanism(world, 10).expected_cohort == pytest.approx(400)
    assert hypothetical_world(config()) is None


def test_where_nothing_is_pretended_nothing_is_scaled() -> None:
    assert Mechanism(config(), 10).noise_factor == 1.0
    assert Mechanism(sampled(), 10).noise_factor == 1.0
    real = round_event(hypothetical(400, 10_000), 100)
    assert isinstance(real, SkellamSum)
    assert real.honest_variance < Mechanism(config(), 100).variance / 1000


@pytest.mark.parametrize(
    ("pretended", "text"),
    [
        ({"cohort": 9, "population": 8}, "cohort 9 is above population 8"),
        ({"cohort": 0, "population": 8}, "cohort"),
    ],
)
def test_an_impossible_pretence_is_refused(pretended: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config(privacy={"hypothetical": pretended})


def test_only_noise_on_the_sum_of_clients_can_pretend_a_cohort() -> None:
    with pytest.raises(ConfigError, match="needs `unit: client`"):
        config("conversation", privacy={"hypothetical": {"cohort": 9, "population": 80}})
