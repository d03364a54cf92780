"""The benchmark runs, and its JSON has the keys that benchmarks/README.md promises."""

from __future__ import annotations

import json

import pytest

from benchmarks.startup import measure


def test_the_promised_keys_are_there():
    found = measure(repeats=1)
    assert json.loads(json.dumps(found)) == found
    assert found["repeats"] == 1
    assert set(found["goals"]) == set(found["beyond_interpreter_s"]) == {"help", "audit_start"}
    assert set(found["cpu_beyond_interpreter_s"]) == set(found["goals"])
    own = found["interpreter_s"]
    assert 0 < own["min"] <= own["median"] <= own["max"]


def test_a_run_that_fails_its_audit_is_no_figure(tmp_path):
    with pytest.raises(RuntimeError, match="exit 2, expected 0"):
        measure(repeats=1, run=tmp_path / "none")
