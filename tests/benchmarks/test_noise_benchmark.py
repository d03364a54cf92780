"""The benchmark runs, and its JSON has the keys that benchmarks/README.md promises."""

from __future__ import annotations

import json

from benchmarks.noise import measure


def test_the_promised_keys_are_there():
    found = measure((2_000, 70_000), repeats=2, values=4_000, threads=2)
    assert json.loads(json.dumps(found)) == found
    small, large = found["sizes"]
    assert found["threads"] == 2
    assert (small["n"], large["n"]) == (2_000, 70_000)
    assert found["ratio_to_randn"] == large["ratio_to_randn"]["median"]
    for cell in (small, large):
        for ratio in (cell["ratio_to_randn"], cell["ratio_to_randn64"]):
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert set(cell["wall_ns"]) == set(cell["cpu_ns"]) == {"ours", "randn", "randn64"}
