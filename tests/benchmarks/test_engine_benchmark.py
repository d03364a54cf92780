"""The engine's benchmark runs, and its JSON has the keys that benchmarks/README.md promises."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.engine import measure
from benchmarks.idle import factor


def test_the_promised_keys_are_there_and_the_sums_are_exact():
    found = measure((2, 4), 3_000, rounds=1, repeats=2, workers=1)
    assert json.loads(json.dumps(found)) == found
    assert found["is_exact"]
    assert list(found["ms_per_client_round"]["ours"]) == ["2", "4"]
    assert found["ms_per_client_round"]["ours"]["2"] > 0
    assert found["ms_per_client_round"]["flower_ray"] is None
    assert found["growth"]["min"] <= found["growth"]["median"] <= found["growth"]["max"]
    assert found["peak_memory_bytes"]["parent"] > 0
    assert len(found["peak_memory_bytes"]["workers"]) == found["workers"] == 1


def test_every_client_of_a_round_has_its_own_vector():
    factors = [factor(node, round_) for node in range(1, 3_000) for round_ in (1, 2)]
    assert all(each % 2 == 1 for each in factors)  # an odd factor loses no bit of the model
    assert len(set(factors)) == len(np.unique(factors)) == len(factors)
