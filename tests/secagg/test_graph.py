"""The bounds on the graph against exact twins, enumeration and simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import hypergeom

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg import graph


def tail(population, marked, drawn, least):
    """P[Hypergeometric >= least], exactly."""
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x)
        for x in range(max(least, 0), min(drawn, marked) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


def exact_insecurity(n, c, quorum, k, t):
    return sum(
        math.comb(n - c, m) * tail(n - 1, m - 1 + c, k, t) ** m for m in range(1, quorum - c)
    )


SMALL = [
    (n, c, quorum, k, t)
    for n in (4, 7, 12)
    for c in range(n // 2)
    for quorum in {(n + c) // 2 + 1, n}
    for k in range(1, n)
    for t in range(1, k + 1)
]


def test_bounds_equal_exact_rationals():
    for n, c, quorum, k, t in SMALL:
        exact = exact_insecurity(n, c, quorum, k, t)
        said = graph.log2_insecurity(n, c, quorum, k, t)
        assert said == -math.inf if exact == 0 else 0 <= said - math.log2(exact) < 0.002
        exact = n * tail(n - 1, c, k, k - t + 1)
        said = graph.log2_failure(n, c, k, t)
        assert said == -math.inf if exact == 0 else 0 <= said - math.log2(exact) < 0.002


def test_bounds_equal_scipy_for_a_thousand_members():
    n, c, quorum, k, t = 1000, 100, 551, 54, 33
    m = np.arange(1, quorum - c)
    sets = hypergeom.logsf(t - 1, n - 1, m - 1 + c, k) * m
    sets += [math.lgamma(n - c + 1) - math.lgamma(i + 1) - math.lgamma(n - c - i + 1) for i in m]
    expected = np.logaddexp.reduce(sets) / math.log(2)
    assert graph.log2_insecurity(n, c, quorum, k, t) == pytest.approx(expected, abs=0.01)
    expected = (hypergeom.logsf(k - t, n - 1, 100, k) + math.log(n)) / math.log(2)
    assert graph.log2_failure(n, 100, k, t) == pytest.approx(expected, abs=0.01)


def closed_sets(draws, honest, colluding, t, below):
    """Every honest set smaller than `below` whose members each have t draws in it or colluding."""
    for size in range(1, below):
        for members in itertools.combinations(honest, size):
            inside = {*members, *colluding}
            if all(len(inside & draws[i]) >= t for i in members):
                yield members


@pytest.mark.parametrize(
    ("n", "c", "quorum", "k", "t"), [(5, 1, 4, 2, 2), (5, 0, 4, 2, 2), (6, 2, 5, 2, 2)]
)
def test_no_more_graphs_than_the_bound_says_have_a_small_closed_set(n, c, quorum, k, t):
    # every graph there is, one by one
    honest, colluding = range(c + 1, n + 1), range(1, c + 1)
    choices = [
        [set(s) for s in itertools.combinations([j for j in range(1, n + 1) if j != i], k)]
        for i in honest
    ]
    bad = total = 0
    for drawn in itertools.product(*choices):
        draws = dict(zip(honest, drawn, strict=True))
        bad += any(closed_sets(draws, honest, colluding, t, quorum - c))
        total += 1
    assert 0 < Fraction(bad, total) <= exact_insecurity(n, c, quorum, k, t)


def test_simulated_rounds_fail_about_as_often_as_the_bound_says():
    n, lost, k, t, rounds = 40, 8, 8, 5, 600
    rng, order = Randomness.seeded(1), np.random.default_rng(1)
    failed = 0
    for _ in range(rounds):
        gone = set(order.permutation(n)[:lost] + 1)
        draws = [graph.draw_neighbours(n, i, k, rng) for i in range(1, n + 1)]
        failed += any(len(gone.intersection(drawn)) > k - t for drawn in draws)
    bound = 2 ** graph.log2_failure(n, lost, k, t)
    assert 0.4 * bound < failed / rounds < bound + 3 * math.sqrt(bound / rounds)


def test_simulated_graphs_have_small_closed_sets_no_more_often_than_the_bound_says():
    n, c, quorum, k, t, rounds = 10, 2, 7, 4, 4, 400
    rng, honest, colluding = Randomness.seeded(2), range(3, 11), (1, 2)
    found = 0
    for _ in range(rounds):
        draws = {i: set(graph.draw_neighbours(n, i, k, rng)) for i in honest}
        found += any(closed_sets(draws, honest, colluding, t, quorum - c))
    bound = exact_insecurity(n, c, quorum, k, t)
    assert found / rounds <= bound + 3 * math.sqrt(bound / rounds)


def test_more_shares_are_safer_and_fail_more_often():
    safe = [graph.log2_insecurity(300, 30, 166, 45, t) for t in range(1, 46)]
    fail = [graph.log2_failure(300, 30, 45, t) for t in range(1, 46)]
    assert safe == sorted(safe, reverse=True)
    assert fail == sorted(fail)


def test_a_higher_quorum_or_more_colluding_members_are_harder():
    quorums = [graph.log2_insecurity(300, 30, quorum, 45, 28) for quorum in range(166, 220)]
    assert quorums == sorted(quorums)
    colluding = [graph.log2_insecurity(300, c, 166, 45, 28) for c in range(0, 31, 5)]
    assert colluding == sorted(colluding)


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.2, 0.1), (0.05, 0.05), (1 / 3, 0.1)])
def test_parameters_meet_both_bounds_and_no_smaller_degree_does(shares):
    for n in (1, 2, 10, 100, 300, 1000):
        k, t = graph.parameters(n, *shares)
        c, lost = (graph.members_of(n, share) for share in shares)
        quorum = graph.smallest_quorum(n, c)
        if not k:
            assert t == quorum
            continue
        assert graph.log2_insecurity(n, c, quorum, k, t) <= -40
        assert graph.log2_failure(n, lost, k, t) <= -20
        assert 2 * graph.expected_neighbours(n, k) <= n - 1
        assert not any(
            graph.log2_insecurity(n, c, quorum, k - 1, other) <= -40
            and graph.log2_failure(n, lost, k - 1, other) <= -20
            for other in range(1, k)
        )


def test_degrees_grow_with_what_is_feared():
    n = 1000
    colluding = [graph.parameters(n, share, 0.1)[0] for share in (0, 0.1, 0.2, 0.3)]
    dropouts = [graph.parameters(n, 0.1, share)[0] for share in (0.02, 0.05, 0.1)]
    assert colluding == sorted(colluding)
    assert dropouts == sorted(dropouts)
    quorums = [graph.parameters(n, 0.1, 0.1, quorum=quorum)[0] for quorum in (551, 600, 700)]
    assert quorums == sorted(quorums)


def test_the_degree_grows_with_the_logarithm_of_the_cohort():
    degrees = [graph.parameters(n, 0.1, 0.1)[0] for n in (1000, 10_000, 30_000)]
    assert degrees == sorted(degrees)
    assert degrees[2] < 1.3 * degrees[0]


def test_a_quorum_that_dropouts_leave_no_room_for_is_refused():
    for quorum in (550, 901):  # 2T <= n + c; more than stay
        with pytest.raises(ProtocolError, match=r"graph\.quorum: is \d+, must be in 551..900"):
            graph.parameters(1000, 0.1, 0.1, quorum=quorum)


@pytest.mark.parametrize(("n", "degree"), [(2, 1), (5, 2), (5, 4), (9, 0), (30, 29)])
def test_draws_are_distinct_others_in_order(n, degree):
    rng = Randomness.seeded(3)
    for index in range(1, n + 1):
        drawn = graph.draw_neighbours(n, index, degree, rng)
        assert list(drawn) == sorted(set(drawn))
        assert len(drawn) == degree
        assert set(drawn) <= set(range(1, n + 1)) - {index}


def test_every_set_of_neighbours_is_drawn_equally_often():
    rng = Randomness.seeded(4)
    draws = [graph.draw_neighbours(6, 2, 2, rng) for _ in range(6000)]
    counts = [draws.count(pair) for pair in itertools.combinations([1, 3, 4, 5, 6], 2)]
    assert sum(counts) == 6000
    # chi-square, 9 degrees of freedom: 99.9% lie below 27.9
    assert sum((count - 600) ** 2 / 600 for count in counts) < 27.9


RECORDED = """
| n | c | T | k | t | masks per member | security | failure |
|--:|--:|--:|--:|--:|--:|--:|--:|
| 100 | 10 | 56 | complete | 56 | 99 | certain | none |
| 200 | 20 | 111 | 40 | 25 | 72 | 2^-47.6 | 2^-22.0 |
| 500 | 50 | 276 | 49 | 30 | 93 | 2^-50.6 | 2^-21.2 |
| 1000 | 100 | 551 | 54 | 33 | 105 | 2^-60.8 | 2^-20.6 |
| 10000 | 1000 | 5501 | 63 | 38 | 126 | 2^-59.8 | 2^-20.5 |
"""


def test_the_table_is_the_one_that_was_recorded():
    assert graph.table([100, 200, 500, 1000, 10_000], 0.1, 0.1) == RECORDED.strip()
