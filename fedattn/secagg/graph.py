"""Who masks with whom in a large cohort: random neighbours, how many, and how many shares open.

Each member draws k others from its own randomness and signs them: nobody can choose a member's
draws or grind them. Masks run along both directions of every draw; a member's secrets are shared
among the k it drew, t of which reconstruct. Bell et al. 2020, "Secure Single-Server Aggregation
with (Poly)Logarithmic Overhead", section 4; here every survivor list is confirmed by a global
quorum T, which leaves one condition on the graph.

**Security.** Of n members, c collude with the server, chosen before the draws; h = n - c do not.
An honest holder reveals its share of i's self seed only if i signed that it masked with it, and if
both are in the one confirmed survivor list, so that nobody opens the mask they share. So where the
server learns a sum over honest members K, the honest holders that opened i in K are in K as well
(the mask would not cancel otherwise): at least t of i's k draws lie in K or among the colluding.
Call such a K *closed*. Draws are independent, so a given K of m members is closed with probability
q(m)^m, where q(m) = P[Hypergeometric(n - 1, m - 1 + c, k) >= t]. Hence

    P[some closed K has fewer than T - c members] <= sum over m < T - c of C(h, m) q(m)^m,

whatever dropouts, hidden edges and invented neighbours the server makes of a graph that it sees.
m = 1 is a member whose colluding holders alone open it; without such members no mask between two
honest survivors is known, which "would not cancel" above rests on. As 2T > n + c, two sets of T - c
honest members meet: one sum is learned at most, over T - c honest members at least.

**Failure.** Where L members are lost at random, some secret has fewer than t holders left with
probability at most n P[Hypergeometric(n - 1, L, k) > k - t].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedattn.randomness import Randomness
from fedattn.secagg.checks import require

SECURITY_BITS = 40.0
FAILURE_BITS = 20.0
_ROUNDING_BITS = 0.001  # far above the error of adding logarithms, so that bounds stay bounds
_ROWS = 4096
_Floats = npt.NDArray[np.float64]


def draw_neighbours(n: int, index: int, degree: int, randomness: Randomness) -> tuple[int, ...]:
    """`degree` of the members 1..n other than `index`, every set equally likely, ascending.

    Floyd's algorithm (Bentley and Floyd 1987, "A sample of brilliance").
    """
    chosen: set[int] = set()
    for top in range(n - 1 - degree, n - 1):
        pick = randomness.below(top + 1)
        chosen.add(top if pick in chosen else pick)
    return tuple(sorted(place + 1 if place + 1 < index else place + 2 for place in chosen))


@lru_cache(maxsize=256)
def log2_insecurity(
    n: int, max_colluding: int, quorum: int, degree: int, share_threshold: int
) -> float:
    """log2 of the bound above: a sum over fewer than quorum - c honest members, or both secrets.

    >>> log2_insecurity(1000, 100, 551, 100, 70) < -40
    True
    """
    honest, c = n - max_colluding, max_colluding
    sizes = np.arange(1, quorum - c)
    if len(sizes) == 0:
        return -math.inf
    closed = _log2_tail(n - 1, sizes - 1 + c, degree, share_threshold)
    table = _log2_factorials(n)
    sets = table[honest] - table[sizes] - table[honest - sizes]
    return float(np.logaddexp2.reduce(sets + sizes * closed)) + _ROUNDING_BITS


def log2_failure(n: int, lost: int, degree: int, share_threshold: int) -> float:
    """log2 of the bound on a secret that cannot be reconstructed after `lost` random losses."""
    tail = _log2_tail(n - 1, np.array([lost]), degree, degree - share_threshold + 1)
    return float(tail[0]) + math.log2(n) + _ROUNDING_BITS


def smallest_quorum(n: int, max_colluding: int) -> int:
    """The least T with 2T > n + c."""
    return (n + max_colluding) // 2 + 1


def members_of(n: int, share: float) -> int:
    """The members that a share of n allows, rounded down.

    >>> members_of(100, 0.29)
    29
    """
    return math.floor(Fraction(share).limit_denominator(10**6) * n)


def parameters(
    n: int, max_colluding_share: float, dropout_share: float, *, quorum: int | None = None
) -> tuple[int, int]:
    """(k, t) with the least k of 2^-40 security and 2^-20 failure; (0, T) for a complete graph.

    quorum: T, the least possible by default; the noise of T - c honest members is in every sum,
    and a larger T asks for a larger k. The complete graph, whose guarantee is no probability, stays
    unless drawing at least halves a member's expected masks, 2k - k^2 / (n - 1).

    Raises ProtocolError("graph.quorum") if T exceeds what the stated dropouts leave, or
    2T <= n + c.
    """
    c, lost = members_of(n, max_colluding_share), members_of(n, dropout_share)
    needed = smallest_quorum(n, c) if quorum is None else quorum
    require(
        smallest_quorum(n, c) <= needed <= n - lost,
        "graph.quorum",
        f"is {needed}, must be in {smallest_quorum(n, c)}..{n - lost}; allow fewer dropouts",
    )
    for degree in range(1, n):
        if 2 * expected_neighbours(n, degree) > n - 1:
            break
        threshold = _largest_threshold(n, lost, degree)
        if threshold and log2_insecurity(n, c, needed, degree, threshold) <= -SECURITY_BITS:
            return degree, threshold
    return 0, needed


def expected_neighbours(n: int, degree: int) -> float:
    """How many members one masks with on average, drawn by it or drawing it."""
    return 2 * degree - degree**2 / (n - 1) if degree else n - 1


def table(
    sizes: Iterable[int], max_colluding_share: float, dropout_share: float, quorum_share: float = 0
) -> str:
    """A Markdown table of (n, c, T, k, t), masks per member and the two bounds, for the docs."""
    lines = [
        "| n | c | T | k | t | masks per member | security | failure |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for n in sizes:
        c, lost = members_of(n, max_colluding_share), members_of(n, dropout_share)
        quorum = max(smallest_quorum(n, c), math.ceil(quorum_share * n))
        k, t = parameters(n, max_colluding_share, dropout_share, quorum=quorum)
        cells = [str(n), str(c), str(quorum)]
        if k:
            secure = log2_insecurity(n, c, quorum, k, t)
            cells += [str(k), str(t), f"{expected_neighbours(n, k):.0f}", f"2^{secure:.1f}"]
            failure = log2_failure(n, lost, k, t)
            cells.append("none" if failure == -math.inf else f"2^{failure:.1f}")
        else:
            cells += ["complete", str(t), str(n - 1), "certain", "none"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _largest_threshold(n: int, lost: int, degree: int) -> int:
    """The largest t with 2^-20 failure, 0 if there is none: a larger one is only more secure."""
    low, high = 0, degree
    while low < high:
        middle = (low + high + 1) // 2
        if log2_failure(n, lost, degree, middle) <= -FAILURE_BITS:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache(maxsize=8)
def _log2_factorials(n: int) -> _Floats:
    """log2(i!) for i in 0..n."""
    return np.concatenate(([0.0], np.cumsum(np.log2(np.arange(1, n + 1)))))


def _log2_tail(population: int, marked: npt.NDArray[np.int64], drawn: int, least: int) -> _Floats:
    """log2 P[Hypergeometric(population, marked, drawn) >= least], for each of `marked` (rows,)."""
    table = _log2_factorials(population + 1)

    def choose(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> _Floats:
        a, b = np.broadcast_arrays(a, b)
        fits = (b >= 0) & (b <= a)
        b = np.where(fits, b, 0)
        return np.where(fits, table[a] - table[b] - table[a - b], -np.inf)

    hits = np.arange(max(least, 0), drawn + 1)
    whole = table[population] - table[drawn] - table[population - drawn]
    tails = [
        np.logaddexp2.reduce(
            choose(rows, hits) + choose(population - rows, drawn - hits) - whole, axis=1
        )
        for rows in np.array_split(marked[:, None], -(-len(marked) // _ROWS))
    ]
    bounded: _Floats = np.minimum(np.concatenate(tails), 0.0)
    return bounded
