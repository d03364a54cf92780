"""Skellam draws have the stated law, to the stated error, by a table that a slow twin agrees with.

A statistical check is a function that names what it finds wrong, and it is shown to find it: each
is run on honest draws and on draws that are wrong in a known way. Streams are seeded.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import special, stats

from benchmarks.skellam import measure
from fedattn.errors import PrivacyError
from fedattn.noise import gaussian
from fedattn.randomness import Randomness
from fedattn.skellam import (
    MAX_VARIANCE,
    MIN_VARIANCE,
    SkellamSampler,
    build_table,
    log_tail,
    smallest_beyond,
    weights,
)

N = 2_000_000


def slow_distribution(variance: float, largest: int) -> list[Fraction]:
    """P(|Z| = k), k = 0..largest, by the definition: the difference of two Poissons, 100 digits."""
    with localcontext() as context:
        context.prec = 100
        mean = Decimal(variance) / 2
        term = (-mean).exp()
        poisson = [term]
        while len(poisson) < mean + largest + 20 or poisson[-1] > Decimal("1e-70"):
            term = term * mean / len(poisson)
            poisson.append(term)
        difference = [
            sum((a * b for a, b in zip(poisson, poisson[k:], strict=False)), Decimal(0))
            for k in range(largest + 1)
        ]
        return [Fraction(p) * (2 if k else 1) for k, p in enumerate(difference)]


@pytest.mark.parametrize("variance", [MIN_VARIANCE, 0.3, 1.0, 7.3, 144.0, 400.1])
def test_probabilities_and_their_sums_are_right_to_128_bits(variance):
    found, bound = weights(variance)
    exact = slow_distribution(variance, len(found) - 1)
    assert sum(found) == 1 << 191
    parts = [Fraction(w, 1 << 191) for w in found]
    gap = cumulative = Fraction(0)
    for part, p in zip(parts, exact, strict=True):
        assert abs(part - p) < Fraction(1, 1 << 128)
        cumulative += part - p
        assert abs(cumulative) < Fraction(1, 1 << 128)
        gap += abs(part - p)
    outside = 1 - sum(exact)  # the tail that the table leaves out
    assert 0 < outside < Fraction(1, 1 << 128)
    assert (gap + outside) / 2 <= Fraction(bound)


@pytest.mark.parametrize("variance", [1e4, 1e6, 1e8 + 0.25, 9e8])
def test_probabilities_of_a_large_variance_match_scipy(variance):
    mass = np.array([w / 2.0**191 for w in weights(variance)[0]])
    k = np.arange(len(mass))
    near = k < 8 * math.sqrt(variance)
    expected = np.where(k, 2, 1) * special.ive(k, variance)  # e^-v I_k(v), both signs
    assert np.allclose(mass[near], expected[near], rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance", [MIN_VARIANCE, 1e-3, 0.5, 3.0, 1e4, 1e8, MAX_VARIANCE])
def test_error_of_a_draw_is_below_2_to_the_minus_128(variance):
    sampler = SkellamSampler(variance)
    assert 0 < sampler.total_variation < 2.0**-128
    assert 2 * math.exp(log_tail(sampler.largest + 1, variance)) < sampler.total_variation


@pytest.mark.parametrize("variance", [0.3, 4.0, 100.0])
def test_tail_bound_holds_and_is_met_first_at_the_value_found(variance):
    exact = slow_distribution(variance, 200)
    for k in range(0, 60, 5):
        above = sum(exact[k:]) / 2 + (exact[0] / 2 if k == 0 else 0)
        assert above <= Fraction(math.exp(log_tail(k, variance))) + Fraction(1, 10**60)
    k = smallest_beyond(-20.0, variance)
    assert log_tail(k, variance) <= -20 < log_tail(k - 1, variance)


def thresholds(table) -> list[int]:
    """Every column's threshold in full, 191 - m bits."""
    return [
        ((int(entry) >> table.column_bits) << 128) | (int(middle) << 64) | int(last)
        for entry, (middle, last) in zip(table.entries, table.rest, strict=True)
    ]


@pytest.mark.parametrize("variance", [MIN_VARIANCE, 0.3, 7.3, 100.0, 3600.5])
def test_table_holds_every_weight_exactly(variance):
    table = build_table(variance)
    columns, full = 1 << table.column_bits, 1 << (191 - table.column_bits)
    assert table.entries.shape == (columns,)
    mass = [0] * columns
    for column, threshold in enumerate(thresholds(table)):
        alias = column ^ (int(table.entries[column]) & (columns - 1))
        assert 0 <= threshold < full
        mass[column] += threshold
        mass[alias] += full - threshold
    expected = weights(variance)[0]
    assert mass == expected + [0] * (columns - len(expected))
    assert table.largest == len(expected) - 1


class Recited(Randomness):
    """A stream whose words are given; it fails if asked for more."""

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(32), is_seeded=True)
        self.left = list(words)

    def words(self, n: int) -> np.ndarray:
        taken, self.left = self.left[:n], self.left[n:]
        assert len(taken) == n, "more words asked for than expected"
        return np.array(taken, np.uint64)


def slow_draw(table, word: int, rest: int) -> int:
    """One draw from the definition: sign, comparison and column of `word`, then 128 bits `rest`."""
    bits = table.column_bits
    column = word & ((1 << bits) - 1)
    fraction = (((word & ((1 << 63) - 1)) >> bits) << 128) | rest
    alias = column ^ (int(table.entries[column]) & ((1 << bits) - 1))
    value = column if fraction < thresholds(table)[column] else alias
    return -value if word >> 63 else value


@pytest.mark.parametrize("variance", [0.3, 7.3, 100.0])
def test_draws_equal_the_slow_twin(variance):
    words = Randomness.seeded(1, "twin").words(500).tolist()
    drawn = SkellamSampler(variance).draw(500, Recited(*words)).tolist()
    assert drawn == [slow_draw(build_table(variance), word, 0) for word in words]


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    ("place", "step"), [("middle", -1), ("middle", 1), ("last", -1), ("last", 0), ("last", 1)]
)
def test_a_tie_is_decided_by_the_bits_that_follow(negative, step, place):
    variance = 100.0
    table, sampler = build_table(variance), SkellamSampler(variance)
    low = (1 << table.column_bits) - 1
    tried = 0
    for column in range(0, 1 << table.column_bits, 7):
        entry = int(table.entries[column])
        middle, last = table.rest[column].tolist()
        if not 0 < middle < 2**64 - 1 or not 0 < last < 2**64 - 1 or not entry & low:
            continue
        word = (entry & ~low) | column | (negative << 63)
        if place == "middle":
            more, rest = [middle + step], (middle + step) << 64
        else:
            more, rest = [middle, last + step], (middle << 64) | (last + step)
        plain = column | (1 << 62)  # a neighbour that does not tie, so its draw must not change
        stream = Recited(plain, word, plain, *more)
        expected = [slow_draw(table, w, r) for w, r in ((plain, 0), (word, rest), (plain, 0))]
        assert sampler.draw(3, stream).tolist() == expected
        assert stream.left == []
        alias = column ^ (entry & low)
        assert abs(expected[1]) == (column if step < 0 else alias)
        tried += 1
    assert tried > 10


def test_every_tie_of_a_chunk_is_resolved_in_order():
    table, sampler = build_table(100.0), SkellamSampler(100.0)
    low = (1 << table.column_bits) - 1
    columns = [c for c in range(low + 1) if int(table.entries[c]) & low and table.rest[c][0] > 0][
        :6
    ]
    words = [(int(table.entries[c]) & ~low) | c for c in columns]
    more = [int(table.rest[c][0]) - (i % 2) for i, c in enumerate(columns)]
    stream = [m for i, m in enumerate(more) for m in ([m] if i % 2 else [m, 2**64 - 1])]
    drawn = sampler.draw(6, Recited(*words, *stream)).tolist()
    aliases = [c ^ (int(table.entries[c]) & low) for c in columns]
    assert drawn == [
        c if i % 2 else a for i, (c, a) in enumerate(zip(columns, aliases, strict=True))
    ]


def moments_off(z: np.ndarray, variance: float, sigmas: float = 5.0) -> list[str]:
    """Which of the first four moments is more than `sigmas` standard errors off."""
    v, n = variance, len(z)
    fourth, sixth = 3 * v**2 + v, 15 * v**3 + 15 * v**2 + v  # every even cumulant is v
    eighth = 105 * v**4 + 210 * v**3 + 63 * v**2 + v
    z = z.astype(np.float64)
    square = z * z
    checks = [
        ("mean", z.mean(), 0.0, v),
        ("variance", square.mean(), v, fourth - v**2),
        ("third", (square * z).mean(), 0.0, sixth),
        ("fourth", (square * square).mean(), fourth, eighth - fourth**2),
    ]
    return [
        name for name, found, true, spread in checks
        if abs(found - true) > sigmas * math.sqrt(spread / n)
    ]  # fmt: skip


def tails_off(z: np.ndarray, variance: float, sigmas: float = 5.0) -> list[str]:
    """Which tail frequency, beyond 2, 3 and 4 standard deviations on either side, is off."""
    off, n = [], len(z)
    mass = np.array([w / 2.0**191 for w in weights(variance)[0]]) / 2
    for deviations in (2.0, 3.0, 4.0):
        beyond = math.ceil(deviations * math.sqrt(variance))
        p = mass[beyond:].sum()
        for name, count in [("upper", (z >= beyond).sum()), ("lower", (z <= -beyond).sum())]:
            if abs(count - n * p) > sigmas * math.sqrt(n * p * (1 - p)):
                off.append(f"{name} {deviations:g}")
    return off


def chi_square_p(z: np.ndarray, variance: float, bins: int = 60) -> float:
    """p-value of z's counts over about `bins` intervals of like probability, and the two ends."""
    half = np.array([w / 2.0**191 for w in weights(variance)[0]])
    half[1:] /= 2
    mass = np.concatenate([half[:0:-1], half])  # -K..K
    cumulative = np.cumsum(mass)
    edges = np.unique(np.searchsorted(cumulative, np.linspace(0, 1, bins + 1)[1:-1]))
    p = np.diff(np.concatenate([[0.0], cumulative[edges], [1.0]]))
    where = np.searchsorted(edges, z.astype(np.int64) + len(half) - 1, side="left")
    counts = np.bincount(where, minlength=len(p))
    statistic = ((counts - len(z) * p) ** 2 / (len(z) * p)).sum()
    return float(stats.chi2.sf(statistic, len(p) - 1))


def wrong(z: np.ndarray, variance: float) -> set[str]:
    """The families of checks that find draws of this variance wrong."""
    found = {"moments": moments_off(z, variance), "tails": tails_off(z, variance)}
    return {name for name, off in found.items() if off} | (
        {"chi-square"} if chi_square_p(z, variance) < 1e-6 else set()
    )


VARIANCES = [0.5, 4.0, 100.0, 1e6, 1e8, 1e9]


def draws(variance: float, label: str = "law", n: int = N) -> np.ndarray:
    """Honest draws of a seeded stream."""
    return SkellamSampler(variance).draw(n, Randomness.seeded(11, label, repr(variance)))


@pytest.mark.parametrize("variance", VARIANCES)
def test_draws_have_the_law(variance):
    assert wrong(draws(variance), variance) == set()


def test_checks_themselves_agree_with_scipy_on_the_law():
    z = stats.skellam(50.0, 50.0).rvs(N, random_state=np.random.default_rng(3))
    assert wrong(z, 100.0) == set()


def redraw_beyond(z: np.ndarray, bound: float) -> np.ndarray:
    """The law cut at `bound` and renormalised."""
    kept = z[np.abs(z) <= bound]
    return np.concatenate([kept, kept[: len(z) - len(kept)]])


SABOTAGES = {
    "variance +1%": (lambda v: draws(1.01 * v), {"moments", "chi-square"}),
    "variance -1%": (lambda v: draws(0.99 * v), {"moments", "chi-square"}),
    "variance +2%": (lambda v: draws(1.02 * v), {"moments", "chi-square"}),
    "cut at 4 sigma": (lambda v: redraw_beyond(draws(v), 4 * math.sqrt(v)), {"tails"}),
    "clipped at 4 sigma": (
        lambda v: np.clip(draws(v), -4 * int(math.sqrt(v)) + 1, 4 * int(math.sqrt(v)) - 1),
        {"tails"},
    ),
    "no sign": (lambda v: np.abs(draws(v)), {"moments", "chi-square", "tails"}),
    "mean 0.5% of sigma": (
        lambda v: draws(v) + (Randomness.seeded(5).uniform(N) < 0.005 * math.sqrt(v)),
        {"moments"},
    ),
    "heavier tail": (lambda v: np.where(Randomness.seeded(6).uniform(N) < 1e-4, 8, 1) * draws(v),
                     {"moments", "tails"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGES)
@pytest.mark.parametrize("variance", [100.0, 4e4])
def test_draws_of_a_wrong_sampler_are_rejected(name, variance):
    sample, finders = SABOTAGES[name]
    assert wrong(sample(variance), variance) >= finders


def test_a_rounded_gaussian_is_not_taken_for_a_skellam_of_small_variance():
    z = np.rint(2.0 * gaussian(N, Randomness.seeded(7)))
    assert wrong(z, 4.0) >= {"chi-square", "moments"}


@pytest.mark.parametrize(("variance", "shares"), [(100.0, 8), (1e8, 8), (3.0, 5), (1e6, 3)])
def test_shares_add_up_to_one_noise(variance, shares):
    total = sum(draws(variance / shares, f"share {i}") for i in range(shares))
    assert wrong(total, variance) == set()
    short = total - draws(variance / shares, "share 0")  # one share is missing
    assert wrong(short, variance) >= {"chi-square", "moments"}


def dependent_lags(z: np.ndarray) -> list[int]:
    """Lags at which values, magnitudes or signs are correlated, by 5 standard errors."""
    lags = (1, 2, 3, 7, 64, 1 << 13, 1 << 14, 1 << 15)
    off = []
    for series in (z.astype(float), z.astype(float) ** 2, np.sign(z).astype(float)):
        centred = (series - series.mean()) / series.std()
        off += [
            lag
            for lag in lags
            if abs((centred[:-lag] * centred[lag:]).mean()) > 5 / math.sqrt(len(z) - lag)
        ]
    return off


@pytest.mark.parametrize("variance", [2.0, 100.0, 1e8])
def test_draws_are_independent_of_earlier_ones(variance):
    assert dependent_lags(draws(variance)) == []


def test_dependent_draws_are_found():
    z = draws(100.0, n=1 << 15)
    assert {1 << 15} <= set(dependent_lags(np.tile(z, 20)))  # every chunk the same words
    assert {1} <= set(dependent_lags(np.repeat(draws(100.0, n=N // 2), 2)))


@pytest.mark.parametrize(
    ("variance", "recorded"),
    [
        (0.5, [2, 0, 0, 0, 0, 0, 0, 0, -2, 0, -1, 1]),
        (100.0, [7, 0, 1, 6, -15, 6, 17, -1, -4, 15, -19, 10]),
        (1000000.0, [399, -1366, 210, 909, -2025, 196, 712, -742, -128, 56, -430, 1217]),
        (36000000.0, [437, -5669, 4783, 2833, -131, 8709, 2720, -3915, -3425, 199, -6662, 8032]),
        (
            1000000000.0,
            [
                5828,
                -47203,
                11225,
                21193,
                -16914,
                14136,
                38553,
                -22792,
                -69726,
                19689,
                -26160,
                13792,
            ],
        ),
    ],
)
def test_seeded_draws_never_change(variance, recorded):
    stream = Randomness.seeded(2, "recorded")
    assert SkellamSampler(variance).draw(12, stream).tolist() == recorded


def test_how_draws_are_cut_does_not_change_them():
    sampler, n = SkellamSampler(1e6), (1 << 15) * 2 + 5
    whole = sampler.draw(n, Randomness.seeded(3))
    stream = Randomness.seeded(3)
    cut = [sampler.draw(k, stream) for k in (0, 1, 7, 1 << 15, n - (1 << 15) - 8)]
    assert np.array_equal(np.concatenate(cut), whole)
    assert whole.dtype == np.int32
    assert np.abs(whole).max() <= sampler.largest


def test_streams_of_the_operating_system_differ():
    sampler = SkellamSampler(1e4)
    first, second = (sampler.draw(100, Randomness.from_os()) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    "variance",
    [
        0.0,
        -1.0,
        math.nan,
        math.inf,
        -math.inf,
        MIN_VARIANCE / 2,
        math.nextafter(MAX_VARIANCE, 1e99),
    ],
)
def test_variance_outside_the_range_is_refused(variance):
    with pytest.raises(PrivacyError, match=r"noise variance is .* must be a number in 2\^-20"):
        SkellamSampler(variance)


def test_samplers_of_one_variance_share_a_table_that_none_can_change():
    a, b = SkellamSampler(1e4), SkellamSampler(10_000)
    assert a._table is b._table
    with pytest.raises(ValueError, match="read-only"):
        a._table.entries[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        a._table.rest[0, 0] = 0


def test_benchmark_measures_what_it_names():
    result = measure((10.0,), (64, 1000), (10.0,), repeats=3, values=4000)
    assert [(cell["std"], cell["n"]) for cell in result["draws"]] == [(10.0, 64), (10.0, 1000)]
    for cell in result["draws"]:
        assert 0 < cell["ratio"]["min"] <= cell["ratio"]["median"] <= cell["ratio"]["max"]
        assert cell["skellam_ns"] > 0
        assert cell["randn_ns"] > 0
    assert result["tables"][0]["table_s"]["min"] > 0
    assert result["threads"] == 1
