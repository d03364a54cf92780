"""Probabilities of client sampling are from above, and need no scipy where they are summed."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fedattn.privacy import binomial
from fedattn.privacy.binomial import SLACK, mass, tail


def exact_mass(n: int, q: Fraction, k: int) -> Fraction:
    """The definition, in whole numbers."""
    return comb(n, k) * q**k * (1 - q) ** (n - k) if 0 <= k <= n else Fraction(0)


def at_most_slack_above(found: float, exact: Fraction) -> bool:
    return exact <= Fraction(found) <= exact * (1 + 2 * Fraction(SLACK))


@given(st.integers(1, 80), st.floats(1e-6, 1 - 1e-6), st.integers(-1, 81))
def test_a_probability_is_the_exact_one_rounded_up(n, rate, k):
    q = Fraction(rate)
    if rate**n > 1e-290 and (1 - rate) ** n > 1e-290:
        found, exact = mass(n, rate, k), exact_mass(n, q, k)
        assert found == 1 or at_most_slack_above(found, exact)
        above = sum((exact_mass(n, q, i) for i in range(k + 1, n + 1)), Fraction(0))
        assert tail(n, rate, k) == 1 or at_most_slack_above(tail(n, rate, k), above)


@pytest.mark.parametrize("n", [813, 20_000, binomial.SUMMED])
@pytest.mark.parametrize("rate", [1e-4, 0.12, 0.9])
def test_a_large_one_is_scipys_rounded_up(n, rate):
    mean = round(n * rate)
    for k in (mean // 2, mean, mean + 1, min(n, 2 * mean + 3), n):
        for found, theirs in (
            (tail(n, rate, k), binom.sf(k, n, rate)),
            (mass(n, rate, k), binom.pmf(k, n, rate)),
        ):
            if theirs > 1e-290:
                assert theirs * (1 - 1e-13) <= found <= min(1.0, theirs * (1 + 2 * SLACK))


def test_where_summing_would_take_long_the_same_holds(monkeypatch):
    summed = [tail(5_000, 0.3, 1_600), mass(5_000, 0.3, 1_600)]
    monkeypatch.setattr(binomial, "SUMMED", 100)
    assert [tail(5_000, 0.3, 1_600), mass(5_000, 0.3, 1_600)] == pytest.approx(
        summed, rel=2 * SLACK
    )
    assert tail(10**12, 0.3, 10**11) == 1.0


def test_a_sampled_runs_failure_is_priced_without_scipy():
    code = (
        "import sys; from fedattn.config import load_config; "
        "from fedattn.privacy.rows import amplification_failure; "
        "assert amplification_failure(load_config('configs/cross_device.yaml', [])) > 0; "
        "assert 'scipy' not in sys.modules"
    )
    root = Path(__file__).parent.parent.parent
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
