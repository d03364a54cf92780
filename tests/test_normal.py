"""The sampler of rounded normals: an exact mixture, exact rounding, and the law that comes out."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from fedattn.normal import (
    ERROR,
    HEIGHT_BITS,
    SLOT_BITS,
    SLOTS,
    UNCLEAR,
    RoundedNormal,
    Scratch,
    table,
)
from fedattn.randomness import Randomness

WORD_BITS = 64 - SLOT_BITS


def draws(std: float, n: int, seed: int) -> np.ndarray:
    return RoundedNormal(std).draw(n, Randomness.seeded(seed), Scratch(n)).copy()


class Fixed(Randomness):
    """Words that a test chooses, then the stream's own bytes."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(bytes(32), is_seeded=True)
        self._words = words

    def fill(self, words):
        words[:] = np.array(self._words, np.uint64)


def test_no_rectangle_leaves_the_area_under_the_curve():
    """H_i <= f(x_i), in 60 digits: with areas of 1/N by definition, all that is needed."""
    made = table()
    assert all(a > b > 0 for a, b in pairwise(made.widths))
    with localcontext() as context:
        context.prec = 60
        peak = (
            1
            / (2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494")).sqrt()
        )
        height = Decimal(0)
        for width, stored in zip(made.widths, made.heights, strict=True):
            height += 1 / (2 * SLOTS * Decimal(width))
            curve = peak * (-(Decimal(width) ** 2) / 2).exp()
            assert height <= curve
            assert 0 <= stored * Decimal(2) ** -HEIGHT_BITS - height <= Decimal(2) ** -175


def test_boxes_cover_what_the_rectangles_leave():
    """At a box's inner edge, where the curve is highest, and at the tail's start."""
    made = table()
    assert made.picks[-1] == 1 << 50
    assert len(made.picks) == len(made.widths) + 1
    f = stats.norm.pdf
    for box in [*range(0, len(made.widths), 97), len(made.widths) - 1]:
        low, high = made.edges(box)
        assert made.weight(box) * made.unit / (high - low) > f(low) - made.tops[box]
    tail = made.weight(len(made.widths)) * made.unit * made.widths[0]
    assert tail > f(made.widths[0])


@pytest.mark.parametrize("std", [2.0**26, 1.7 * 2.0**26, 2.0**27 * (1 - 2.0**-50), 12.5])
def test_rectangles_round_as_fractions_do(std):
    """The slow, obvious twin, on the words of the same stream."""
    n = 4000
    sampler, widths = RoundedNormal(std), table().widths
    words = Randomness.seeded(1).words(n)
    drawn = sampler.draw(n, Randomness.seeded(1), Scratch(n))
    for word, value in zip(words.view(np.int64).tolist(), drawn.tolist(), strict=True):
        slot = word % SLOTS
        if slot >= len(widths):
            continue
        # from the least to the most that bits not drawn could add
        ends = [
            Fraction(widths[slot]) * Fraction(std) * Fraction((word >> SLOT_BITS) + more, 1 << 48)
            for more in (0, 1)
        ]
        assert min(map(round, ends)) <= value <= max(map(round, ends))


def test_the_double_is_within_the_stated_error_of_every_extension():
    """The word's value in doubles against both ends of what its further bits could make of it."""
    widths = np.array(table().widths)
    words = Randomness.seeded(2).words(3000).view(np.int64)
    words = np.concatenate([words, [-(2**63), 2**63 - 1, 0, -1, -SLOTS, 2**63 - SLOTS]])
    std, worst = 1.9 * 2.0**26, Fraction(0)
    for word in words.tolist():
        slot = word % SLOTS
        if slot < len(widths):
            double = Fraction(float(widths[slot] * (std * 2.0**-63)) * float(word))
            for more in (0, 1):
                t = Fraction((word >> SLOT_BITS) + more, 1 << (WORD_BITS - 1))
                worst = max(worst, abs(Fraction(widths[slot]) * Fraction(std) * t - double))
    assert worst < Fraction(ERROR) * Fraction(std)


def word_at(slot: int, value: Fraction, std: float) -> int:
    """The word of `slot` whose product is just below `value`."""
    t = value / (Fraction(table().widths[slot]) * Fraction(std))
    return (math.floor(t * 2**48) << SLOT_BITS) + slot


@pytest.mark.parametrize("slot", [0, 1000, 32_000])
@pytest.mark.parametrize("whole", [0, 1, 3, 1001])
def test_words_at_a_half_integer_are_decided_by_further_bits(slot, whole):
    std = 2.0**26
    word = word_at(slot, Fraction(2 * whole + 1, 2), std)
    sampler = RoundedNormal(std)
    found = {
        sampler.rectangle(slot, word >> SLOT_BITS, extra)
        for extra in (0, 1 << 126, 1 << 127, (1 << 128) - 1)
    }
    assert found == {whole, whole + 1}
    seen = []
    sampler._resolve = lambda word, _coins: seen.append(word) or 0
    sampler.draw(1, Fixed([word]), Scratch(1))
    assert seen == [word]


def test_exact_rounding_is_that_of_fractions():
    coins, sampler = Randomness.seeded(3), RoundedNormal(1.3 * 2.0**26)
    for _ in range(500):
        slot, bits = coins.below(len(table().widths)), coins.below(1 << 49) - (1 << 48)
        extra = int.from_bytes(coins.bytes(16), "little")
        t = Fraction((bits << 128) + extra, 1 << 176)
        exact = Fraction(table().widths[slot]) * Fraction(sampler.std) * t
        assert sampler.rectangle(slot, bits, extra) == math.floor(exact + Fraction(1, 2))


@pytest.mark.parametrize("word", [0, 2**64 - 1, 2**63, 2**63 - 1, 1, 2**64 - SLOTS, 2**63 - SLOTS])
def test_extreme_words_are_finite_and_inside_their_slot(word):
    drawn = RoundedNormal(2.0**26).draw(1, Fixed([word]), Scratch(1))[0]
    slot = word % SLOTS
    assert np.isfinite(drawn)
    if slot < len(table().widths):
        assert abs(drawn) <= table().widths[slot] * 2.0**26 + 1


def test_doubles_and_eighty_digits_agree_on_every_box():
    """The two ways to decide a draw of the rest, on the same bits; about half are accepted."""
    coins, sampler = Randomness.seeded(4), RoundedNormal(1.9 * 2.0**26)
    boxes = [coins.below(len(table().widths)) for _ in range(300)]
    accepted = 0
    for box in boxes + [len(table().widths)] * 300:
        place, height = coins.below(1 << 64), coins.below(1 << 64)
        quick = sampler.try_box(box, place, height)
        exact = sampler.try_box_exactly(box, place << 128, height << 128)
        assert quick in (UNCLEAR, exact)
        accepted += exact is not None
    assert 200 < accepted < 600


@pytest.mark.parametrize(("place", "bound"), [(0, 11.5), (1, 11.4), ((1 << 64) - 1, 4.8478)])
def test_the_far_tail_is_finite_and_exact(place, bound):
    """The farthest place that 64 bits can say lies at 11.5 deviations; 192 bits reach beyond."""
    sampler, tail = RoundedNormal(2.0**26), len(table().widths)
    if place < 2:
        assert sampler.try_box(tail, place, 0) == UNCLEAR
    far = sampler.try_box_exactly(tail, (place << 128) + (1 << 127), 0)
    if far is None:  # (at 11 deviations a density of e^-44 less is accepted as rarely)
        pytest.fail("height 0 is always accepted")
    u = (place + 0.5) * 2.0**-64
    start = table().widths[0]
    assert far / 2.0**26 == pytest.approx(start - math.log(u) / start, rel=1e-9)
    assert 4.8476 < far / 2.0**26 < 15


def test_the_rest_has_the_density_that_rectangles_leave():
    """Inside and outside of x_0, and by thirds of the curve, against exact areas."""
    sampler, coins = RoundedNormal(2.0**26), Randomness.seeded(5)
    n, made = 20_000, table()
    x = np.array([sampler._rest(coins) for _ in range(n)]) / 2.0**26
    widths, tops = np.array(made.widths), np.array(made.tops)
    edges = np.array([0, *np.quantile(widths, [0.02, 0.2, 0.5, 0.8, 0.98]), widths[0], np.inf])

    def area(a: float, b: float) -> float:  # of f - H between a and b
        low, high = np.append(widths[1:], 0.0), widths
        width = np.clip(np.minimum(high, b) - np.maximum(low, a), 0, None)
        return stats.norm.cdf(b) - stats.norm.cdf(a) - math.fsum(width * tops)

    areas = np.array([area(a, b) for a, b in pairwise(edges)])
    assert areas.sum() * 2 == pytest.approx(1 - len(widths) / SLOTS, rel=1e-6)
    for side in (x, -x):
        counts, _ = np.histogram(side[side > 0], edges)
        expected = n / 2 * areas / areas.sum()
        chi = ((counts - expected) ** 2 / expected).sum()
        assert chi < stats.chi2.isf(1e-6, len(areas))
    assert abs((x > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("std", [0.4, 1.0, 3.0, 17.3])
def test_cells_of_a_coarse_grid_have_the_exact_probabilities(std):
    """At a small std the whole law is visible: P(k) = Phi((k + 1/2)/std) - Phi((k - 1/2)/std)."""
    n = 1_000_000
    z = draws(std, n, 6)
    reach = math.ceil(4 * std)
    k = np.arange(-reach, reach + 1)
    p = np.diff(stats.norm.cdf((np.append(k, reach + 1) - 0.5) / std))
    p = np.array([*p, 1 - p.sum()])
    counts = [(z == each).sum() for each in k]
    expected = n * p
    chi = ((np.array([*counts, n - sum(counts)]) - expected) ** 2 / expected).sum()
    assert chi < stats.chi2.isf(1e-6, len(p) - 1)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 2.0**31])
def test_a_std_out_of_range_is_refused(std):
    with pytest.raises(ValueError, match="must be in"):
        RoundedNormal(std)
