"""Binomial probabilities, rounded up: how often the sampling of clients goes wrong.

By summing, as long as that is quick and exact enough: `scipy.stats` takes half a second to load,
for two numbers a run. Beyond `SUMMED` it is used all the same.
"""

from __future__ import annotations

import math

SLACK = 1e-8  # of a probability: thrice what float64 can lose in log n! where n is SUMMED
SUMMED = 100_000
_NEGLIGIBLE = 1e-20


def tail(n: int, probability: float, above: int) -> float:
    """P[X > `above`] for X ~ Binomial(`n`, `probability`), rounded up by SLACK of itself.

    0 < probability < 1; `above` from -1 up. Not rounded up if it underflows: then it is 0.

    >>> round(tail(2, 0.5, 1), 6), tail(2, 0.5, 2), tail(2, 1e-200, 1)
    (0.25, 0.0, 0.0)
    """
    if n > SUMMED:
        from scipy.stats import binom  # type: ignore[import-untyped]

        return min(1.0, float(binom.sf(above, n, probability)) * (1 + SLACK))
    terms: list[float] = []
    total, mean = 0.0, n * probability
    for k in range(above + 1, n + 1):
        terms.append(mass(n, probability, k))
        total += terms[-1]
        # past the mean each term is smaller than the last by a growing factor
        if k > 2 * mean + 1 and terms[-1] <= _NEGLIGIBLE * total:
            break
    return min(1.0, math.fsum(terms))


def mass(n: int, probability: float, k: int) -> float:
    """P[X = `k`] for X ~ Binomial(`n`, `probability`), rounded up by SLACK of itself.

    Not rounded up if it underflows: then it is 0.

    >>> round(mass(4, 0.5, 2), 6), mass(4, 0.5, 5)
    (0.375, 0.0)
    """
    if not 0 <= k <= n:
        return 0.0
    if n > SUMMED:
        from scipy.stats import binom

        return min(1.0, float(binom.pmf(k, n, probability)) * (1 + SLACK))
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    log = ways + k * math.log(probability) + (n - k) * math.log1p(-probability)
    return min(1.0, math.exp(log) * (1 + SLACK))
