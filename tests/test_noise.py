"""Noise on a grid: the law of what is added, where sums lie, and that threads change nothing."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedattn.clipping import CLIP_MARGIN
from fedattn.errors import PrivacyError
from fedattn.noise import CHUNK, add_gaussian, add_gaussian_to, gaussian, grid_growth, grid_step
from fedattn.randomness import Randomness

N = 2_000_000
STD = 1.37


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """N draws of std STD, in units of STD; tests of one fixed sample cannot flake."""
    values = np.zeros(N)
    add_gaussian(values, STD, Randomness.seeded(1))
    return values / STD


def test_kolmogorov_smirnov_against_the_normal(noise):
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert stats.kstest(np.abs(noise), "halfnorm").pvalue > 1e-3


def test_a_deviation_wrong_by_half_a_percent_would_be_noticed(noise):
    """The strength of the tests above and below: sqrt(2 / N) is the error of a variance."""
    assert stats.kstest(1.005 * noise, "norm").pvalue < 1e-3
    wrong = (1.005 * noise**2).mean() - 1
    assert abs(wrong) > 2.5 * math.sqrt(2 / N)


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0, 4.0, 4.8476, 5.0])
def test_tails_have_their_binomial_counts(noise, bound):
    p = stats.norm.sf(bound)
    for count in ((noise > bound).sum(), (noise < -bound).sum()):
        assert stats.binomtest(int(count), N, p).pvalue > 1e-4


def test_moments(noise):
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)]:
        assert abs((noise**power).mean() - moment) < 4.5 * math.sqrt(variance / N)


@pytest.mark.parametrize("lag", [1, 2, 8, CHUNK, CHUNK + 1])
def test_neighbours_and_chunks_are_uncorrelated(noise, lag):
    a, b = noise[:-lag], noise[lag:]
    for f in (lambda z: z, np.square, np.abs, np.sign):
        assert abs(np.corrcoef(f(a), f(b))[0, 1]) < 4.5 / math.sqrt(N - lag)


def test_pairs_are_jointly_normal(noise):
    """Squared radius exponential, angle uniform, and the two independent."""
    x, y = noise[0::2], noise[1::2]
    radius, angle = np.exp(-(x**2 + y**2) / 2), np.arctan2(y, x) / (2 * math.pi) + 0.5
    assert stats.kstest(radius, "uniform").pvalue > 1e-3
    assert stats.kstest(angle, "uniform").pvalue > 1e-3
    counts, _, _ = np.histogram2d(radius, angle, 16, [[0, 1], [0, 1]])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_streams_and_calls_are_independent():
    first, again, other = Randomness.seeded(2), Randomness.seeded(2), Randomness.seeded(3)
    n = 200_000
    a, b = gaussian(n, first), gaussian(n, first)
    assert np.array_equal(a, gaussian(n, again))
    for c in (b, gaussian(n, other)):
        assert abs(np.corrcoef(a, c)[0, 1]) < 4.5 / math.sqrt(n)
        assert abs(np.corrcoef(a**2, c**2)[0, 1]) < 4.5 / math.sqrt(n)


def test_unseeded_noise_differs_from_call_to_call():
    stream = Randomness.from_os()
    a, b = gaussian(CHUNK + 9, stream), gaussian(CHUNK + 9, stream)
    assert (a != b).mean() > 0.99
    assert not np.array_equal(a[:9], a[CHUNK:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("std", [1e-3, 1.0, 1.9999999, 5e7])
def test_sums_are_exact_on_the_grid(dtype, std):
    """The same stream on zeros gives the noise; a sum is value and noise in grid steps."""
    step, n = grid_step(std), 50_000
    values = (3 * std * gaussian(n, Randomness.seeded(4))).astype(dtype)
    released, noise = values.copy(), np.zeros(n)
    add_gaussian(released, std, Randomness.seeded(5))
    add_gaussian(noise, std, Randomness.seeded(5))
    whole, of_value = noise / step, np.rint(values.astype(np.float64) / step)
    assert np.array_equal(whole, np.rint(whole))
    assert released.dtype == dtype
    assert np.array_equal(released, ((of_value + whole) * step).astype(dtype))
    if dtype == np.float64:
        assert np.abs(released - noise - values).max() <= step / 2


@given(std=st.floats(2.0**-100, 2.0**100))
def test_the_step_is_a_power_of_two_near_the_deviation(std):
    step = grid_step(std)
    assert math.frexp(step)[0] == 0.5
    assert 2.0**26 <= std / step < 2.0**27


@pytest.mark.parametrize("low", [0.0, 2.0, 4.0])
def test_in_bulk_and_tail_every_multiple_of_the_step_occurs_alike(noise, low):
    """The four lowest bits, where a porous sampler shows: even and odd, and every residue."""
    whole = np.rint(noise[np.abs(noise) >= low] * STD / grid_step(STD)).astype(np.int64)
    assert len(whole) > 100
    for residues in (2, 4, 16):
        counts = np.bincount(whole % residues, minlength=residues)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_a_porous_sampler_would_be_noticed():
    """Box-Muller in float32 beyond 4 deviations lies on even multiples far too often."""
    u = 1 - np.random.default_rng(6).random((2, 4 * N), np.float32)
    z = np.sqrt(-2 * np.log(u[0])) * np.cos(np.float32(2 * math.pi) * u[1])
    whole = np.rint(z[np.abs(z) >= 4].astype(np.float64) / grid_step(1.0)).astype(np.int64)
    assert stats.chisquare(np.bincount(whole % 16, minlength=16)).pvalue < 1e-9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_threads_change_nothing(dtype, n):
    values = np.linspace(-1, 1, n).astype(dtype)
    found = []
    for threads in (1, 2, 5, None):
        released = values.copy()
        add_gaussian(released, 0.7, Randomness.seeded(7), threads=threads)
        found.append(released.tobytes())
    assert len(set(found)) == 1
    assert n == 0 or found[0] != values.tobytes()


def test_a_prefix_of_the_noise_is_the_noise_of_a_prefix():
    """Chunks do not depend on what follows them."""
    assert np.array_equal(
        gaussian(3 * CHUNK, Randomness.seeded(8))[:CHUNK], gaussian(CHUNK, Randomness.seeded(8))
    )


def test_noise_is_added_in_place_to_a_view():
    held = np.zeros((2, 3 * CHUNK))
    add_gaussian(held[1], 1.0, Randomness.seeded(9))
    assert not held[0].any()
    assert (held[1] != 0).mean() > 0.99
    apart = np.zeros(2 * CHUNK)
    add_gaussian(apart[::2], 1.0, Randomness.seeded(9))
    assert np.array_equal(apart[::2], held[1, :CHUNK])
    assert not apart[1::2].any()


def test_memory_does_not_grow_with_the_number_of_values():
    values = np.zeros(40 * CHUNK, np.float32)
    add_gaussian(values, 1.0, Randomness.seeded(10), threads=1)
    tracemalloc.start()
    add_gaussian(values, 1.0, Randomness.seeded(10), threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes / 8


@pytest.mark.parametrize("std", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 2.0**101, 1e-40])
def test_a_deviation_that_is_no_noise_is_refused_before_anything_changes(std):
    values, coins = np.ones(3), Randomness.seeded(11)
    with pytest.raises(PrivacyError, match=r"must be a number in 2\^-100\.\.2\^100"):
        add_gaussian(values, std, coins)
    assert np.array_equal(values, np.ones(3))
    assert coins.bytes(8) == Randomness.seeded(11).bytes(8)


def test_values_of_another_kind_are_refused():
    for values in (np.zeros(3, np.float16), np.zeros((2, 2)), np.zeros(3, np.int64)):
        with pytest.raises(ValueError, match="must be float32 or float64"):
            add_gaussian(values, 1.0, Randomness.seeded(12))
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        add_gaussian(frozen, 1.0, Randomness.seeded(12))
    with pytest.raises(ValueError, match="threads is 0"):
        add_gaussian(np.zeros(3), 1.0, Randomness.seeded(12), threads=0)


def test_values_that_are_not_finite_stay_what_they_are():
    values = np.array([math.nan, math.inf, -math.inf, 1.0])
    add_gaussian(values, 1.0, Randomness.seeded(13))
    assert math.isnan(values[0])
    assert values[1:3].tolist() == [math.inf, -math.inf]
    assert np.isfinite(values[3])


def test_rounding_stays_far_inside_the_clipping_margin():
    """Ten million coordinates, noise of one clip norm; and two vectors at their worst."""
    assert grid_growth(1.0, 10**7) < CLIP_MARGIN / 20
    d, std = 4096, 1.0
    step = grid_step(std)
    one = np.full(d, 0.5 * step * (1 + 1e-9))
    two = -one
    moved = np.linalg.norm(np.rint(one / step) - np.rint(two / step)) * step
    assert moved <= np.linalg.norm(one - two) + grid_growth(std, d)
    assert moved > np.linalg.norm(one - two) + 0.9 * grid_growth(std, d)


# ---- the attack: could a sampler of doubles have made this release from this value?

_NEAR_ZERO = math.exp(-6)  # tail probabilities of radii above 3.46, where doubles outnumber samples


def naive(n: int, seed: int) -> np.ndarray:
    """Radii of Box-Muller from 53-bit uniforms, those in the tail."""
    k = np.random.default_rng(seed).integers(1, int(_NEAR_ZERO * 2**53), n)
    return np.sqrt(-2 * np.log(k * 2.0**-53))


def could_be_naive(noise: np.ndarray) -> np.ndarray:
    """Mironov's test: is there a k whose sample is exactly this double?"""
    k = np.rint(np.exp(-(noise**2) / 2) * 2.0**53)
    near = [np.sqrt(-2 * np.log(np.maximum(k + more, 1) * 2.0**-53)) for more in (-1, 0, 1)]
    return np.any([each == noise for each in near], axis=0)


@pytest.mark.parametrize("value", [0.25, 1.0 / 3.0, 1e-9])
def test_the_attack_tells_neighbours_apart_on_naive_doubles(value):
    released = 0.0 + naive(2000, 14)
    assert could_be_naive(released - 0.0).all()
    assert could_be_naive(released - value).mean() < 0.2


@pytest.mark.parametrize("value", [0.25, 1.0 / 3.0, 1e-9])
def test_the_attack_learns_nothing_from_the_grid(value):
    """Whichever neighbour was released, every candidate's noise is a multiple of the same step.

    What can be released is one and the same set. The attack says yes to either candidate as often
    for what came from 0 as for what came from `value`.
    """
    n, step = 1_000_000, grid_step(1.0)
    releases = []
    for held, seed in ((0.0, 15), (value, 16)):
        released = np.full(n, held)
        add_gaussian(released, 1.0, Randomness.seeded(seed))
        releases.append(released)
        for candidate in (0.0, np.rint(value / step) * step):
            whole = (released - candidate) / step
            assert np.array_equal(whole, np.rint(whole))
            residues = np.bincount(whole.astype(np.int64) % 8, minlength=8)
            assert stats.chisquare(residues).pvalue > 1e-4
    for candidate in (0.0, value):
        table = []
        for released in releases:
            noise = np.abs(released - candidate)
            noise = noise[(noise > math.sqrt(12)) & (released > 3.9)]  # in both candidates' tails
            yes = int(could_be_naive(noise).sum())
            assert yes < 0.2 * len(noise)  # where naive doubles say yes to the true one always
            table.append([yes, len(noise) - yes])
        assert stats.fisher_exact(table).pvalue > 1e-4


def test_several_arrays_are_noised_as_one_would_be_in_chunks_of_their_own():
    sizes = [0, 1, 5, CHUNK, CHUNK + 3]
    arrays = [np.zeros(n, np.float32) for n in sizes]
    add_gaussian_to(arrays, 1.0, Randomness.seeded(3), threads=3)
    again = [np.zeros(n, np.float32) for n in sizes]
    add_gaussian_to(again, 1.0, Randomness.seeded(3), threads=1)
    for one, other in zip(arrays, again, strict=True):
        assert np.array_equal(one, other)
    assert 0.98 < np.concatenate(arrays).std() < 1.02
    assert len(np.unique(np.concatenate([a[:1] for a in arrays if len(a)]))) == 4
