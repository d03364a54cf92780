"""A sum that carries noise: encoded, masked, decoded; how far apart neighbours can be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedattn.config import Config
from fedattn.encoding import SumCodec, codec_of
from fedattn.errors import PrivacyError
from fedattn.mechanism import Mechanism, threshold_of
from fedattn.randomness import Randomness
from tests.secagg.harness import Round, make_spec
from tests.summed import config

SEED = bytes(range(32))


def codec(made: Config, d: int = 300, cohort: int = 8) -> SumCodec:
    found = codec_of(made, d, cohort, SEED)
    assert isinstance(found, SumCodec)
    return found


def vectors(count: int, d: int, seed: int = 0, norm: float = 0.4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(count, d))
    return [(norm * row / np.linalg.norm(row)).astype(np.float32) for row in made]


def total_of(encoded: list[np.ndarray], bits: int) -> np.ndarray:
    return (np.sum([words.astype(np.uint64) for words in encoded], 0) % 2**bits).astype(np.uint32)


def random_config(number: int) -> tuple[Config, int, int]:
    """A config, dimension and cohort that follow from `number`."""
    rng = np.random.default_rng(number)
    unit, noise = [
        ("client", "distributed"),
        ("client", "server"),
        ("conversation", "distributed"),
        ("conversation", "server"),
    ][number % 4]
    n = int(rng.integers(3, 8))
    made = config(
        unit,
        noise,
        data={"clients": n},
        secagg={"threshold": (n + 1) // 2 + 1, "max_colluding": 1, "dropout_share": 0.0},
        privacy={
            "clip_norm": float(rng.uniform(0.05, 2)),
            "noise_multiplier": float(rng.uniform(0.3, 3)),
        },
    )
    return made, int(rng.integers(1, 400)), n


@pytest.mark.parametrize("number", range(50))
def test_decoded_mean_with_masks_equals_the_one_without_bit_for_bit(number):
    made, d, n = random_config(number)
    chosen = codec(made, d, n)
    words = [
        chosen.encode(vector, i, Randomness.seeded(number, str(i)))
        for i, vector in enumerate(vectors(n, d, number), 1)
    ]
    spec = make_spec(n, made.secagg.threshold, 1, chosen.length, chosen.modulus_bits, seed=number)
    masked = Round(spec, dict(enumerate(words, 1)), seed=number).run()
    plain = total_of(words, chosen.modulus_bits)
    assert np.array_equal(masked, plain)
    decoded = [chosen.decode_mean(total, n, Randomness.seeded(7)) for total in (masked, plain)]
    assert decoded[0].tobytes() == decoded[1].tobytes()


@pytest.mark.parametrize("unit", ["client", "conversation"])
def test_without_noise_the_mean_is_right_to_the_grid(unit):
    made = config(unit, "server", privacy={"noise_multiplier": 1e-9})
    chosen, given = codec(made), vectors(8, 300)
    words = [chosen.encode(v, i, Randomness.seeded(i)) for i, v in enumerate(given, 1)]
    mean = chosen.decode_mean(total_of(words, chosen.modulus_bits), 8, Randomness.seeded(1))
    divisor = 8 if unit == "client" else 10
    error = np.linalg.norm(mean * divisor - np.sum(given, 0, dtype=np.float64))
    bound = 8 * math.sqrt(chosen.length) / chosen.mechanism.grid_scale
    assert error <= bound + 1e-6  # each coordinate of each vector is rounded by less than a step


@pytest.mark.parametrize("dropouts", [0, 2])
def test_noise_of_the_sum_is_what_the_survivors_shares_add_up_to(dropouts):
    made = config(privacy={"noise_multiplier": 1.5})
    chosen, zero = codec(made, 30_000), np.zeros(30_000, np.float32)
    survivors = 8 - dropouts
    words = [chosen.encode(zero, i, Randomness.seeded(i)) for i in range(1, survivors + 1)]
    mean = chosen.decode_mean(
        total_of(words, chosen.modulus_bits), survivors, Randomness.seeded(99)
    )
    # shares are sized for T - c = 5 honest survivors, so eight carry 8/5 of the variance
    expected = survivors / 5 * (1.5 * 0.5) ** 2 / survivors**2
    freedom = mean.size
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], freedom) / freedom
    assert low * 0.99 <= np.var(mean) / expected <= high * 1.01


def test_server_noise_has_the_stated_variance():
    made = config(noise="server", privacy={"noise_multiplier": 2.0})
    chosen = codec(made, 30_000)
    total = np.zeros(chosen.length, np.uint32)
    mean = chosen.decode_mean(total, 8, Randomness.seeded(5))
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], mean.size) / mean.size
    assert low * 0.99 <= np.var(mean) * 64 / (2.0 * 0.5) ** 2 <= high * 1.01


def test_server_noise_so_large_that_its_grid_is_coarser_than_integers_is_refused(monkeypatch):
    """Rounding decoded integers to even ones would move neighbouring sums further apart."""
    chosen = codec(config(noise="server"), 300)
    chosen.require_encodable()
    for variance, refused in ((2.0**54, True), (2.0**54 * (1 - 2.0**-20), False)):
        monkeypatch.setattr(Mechanism, "variance", property(lambda _self, v=variance: v))
        if refused:
            with pytest.raises(PrivacyError, match=r"must be below 2\^27"):
                chosen.require_encodable()
            with pytest.raises(PrivacyError, match=r"must be below 2\^27"):
                chosen.decode_mean(np.zeros(chosen.length, np.uint32), 8, Randomness.seeded(0))
        else:
            chosen.decode_mean(np.zeros(chosen.length, np.uint32), 8, Randomness.seeded(0))


def sampled(**changes: Any) -> Config:
    return config(
        data={"clients": 40},
        privacy={"client_rate": 0.5, "max_participations": 8, **changes},
        secagg={"threshold": 10, "max_colluding": 2, "dropout_share": 0.2},
    )


@pytest.mark.parametrize(("cohort", "survivors"), [(10, 10), (20, 20), (20, 16), (25, 21)])
def test_a_sampled_release_carries_the_same_noise_whoever_took_part(cohort, survivors):
    chosen = codec(sampled(), 20_000, cohort)
    zero = np.zeros(20_000, np.float32)
    words = [chosen.encode(zero, i, Randomness.seeded(i)) for i in range(1, survivors + 1)]
    mean = chosen.decode_mean(
        total_of(words, chosen.modulus_bits), survivors, Randomness.seeded(99)
    )
    grid = mean * chosen.mechanism.divisor(survivors) * chosen.mechanism.grid_scale
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], mean.size) / mean.size
    assert low * 0.99 <= np.var(grid) / chosen.mechanism.released_variance <= high * 1.01
    assert chosen.mechanism.divisor(survivors) == 20.0  # public: who dropped out does not show


def test_shares_of_any_accepted_honest_survivors_reach_the_target():
    for made in (config(), sampled()):
        mechanism, c = Mechanism(made, 300), made.secagg.max_colluding
        first = made.secagg.threshold if mechanism.is_sampled else made.data.clients
        for cohort in range(first, made.data.clients + 1):
            honest = threshold_of(made, cohort) - c
            share = mechanism.share_variance(cohort)
            assert honest * share >= mechanism.variance * (1 - 1e-12)
            assert (honest + c - 1) * share >= mechanism.participant_variance * (1 - 1e-12)
            assert share >= mechanism.smallest_share * (1 - 1e-12)
            assert cohort * share <= mechanism.released_variance * (1 + 1e-12) or not (
                mechanism.is_sampled
            )
            assert 2 * threshold_of(made, cohort) > cohort + c


@pytest.mark.parametrize("kind", ["small", "half steps", "spike", "huge", "nan", "inf"])
def test_a_client_differs_from_its_absence_by_at_most_the_accounted_norms(kind):
    made = config()
    chosen, d = codec(made), 300
    rng = np.random.default_rng(3)
    vector = {
        "small": rng.normal(size=d) * 1e-4,
        "half steps": np.full(d, 0.5 / chosen.mechanism.grid_scale),
        "spike": np.eye(1, d)[0] * 5,
        "huge": rng.normal(size=d) * 1e30,
        "nan": np.full(d, np.nan),
        "inf": np.full(d, np.inf),
    }[kind].astype(np.float32)
    absent = chosen.rounded(np.zeros(d, np.float32), 1, Randomness.seeded(0))
    assert not absent.any()
    for seed in range(20):
        values = chosen.rounded(vector, 1, Randomness.seeded(seed))
        assert math.sqrt(int((values**2).sum())) <= chosen.mechanism.l2
        assert int(np.abs(values).sum()) <= chosen.mechanism.l1


def test_sums_that_differ_by_a_clipped_gradient_stay_within_the_accounted_norms():
    made = config("conversation")
    chosen, d, worst = codec(made), 300, 0.0
    rng = np.random.default_rng(4)
    for trial in range(50):
        rest = (rng.normal(size=d) * rng.uniform(0, 3)).astype(np.float32)
        record = rng.normal(size=d)
        record *= 0.5 / np.linalg.norm(record)
        pair = [chosen.rounded(v, 2, Randomness.seeded(trial)) for v in (rest, rest + record)]
        difference = pair[1] - pair[0]
        worst = max(worst, math.sqrt(int((difference**2).sum())))
        assert int(np.abs(difference).sum()) <= chosen.mechanism.l1
    assert chosen.mechanism.clip * 0.9 < worst <= chosen.mechanism.l2


def test_dither_is_public_the_same_for_neighbours_and_unbiased():
    made = config("conversation", secagg={"grid_scale": 4.0, "modulus_bits": 32})
    vector = np.full(256, 0.1, np.float32)
    found = np.zeros(256)
    for number in range(400):
        chosen = SumCodec(Mechanism(made, 256), 8, number.to_bytes(32, "big"))
        values = chosen.rounded(vector, 1, Randomness.seeded(1))
        again = chosen.rounded(vector, 1, Randomness.seeded(2))  # a device's own coins do not enter
        assert np.array_equal(values, again)
        found += chosen._rotation.inverse(values / 4.0)
    # a rounded coordinate is off by less than a step, so the mean of 400 by little; 6 deviations
    assert np.abs(found / 400 - 0.1).max() < 6 * 0.5 / 4 / 20


def test_words_wrap_with_negligible_probability_at_the_chosen_modulus():
    made, d = config(privacy={"noise_multiplier": 3.0}), 2000
    chosen = codec(made, d)
    same = vectors(1, d, norm=0.5)[0]  # all clients alike: the longest sum there can be
    words = [chosen.encode(same, i, Randomness.seeded(i)) for i in range(1, 9)]
    mean = chosen.decode_mean(total_of(words, chosen.modulus_bits), 8, Randomness.seeded(1))
    spread = math.sqrt(8 * chosen.mechanism.share_variance(8)) / chosen.mechanism.grid_scale / 8
    assert np.abs(mean - same).max() < 7 * spread  # a wrapped coordinate would be far beyond
    assert chosen.modulus_bits < 32
