"""The benchmark runs, and its JSON has the keys that benchmarks/README.md promises."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.attention import generation_ratio, layer_ratio


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_promised_keys_are_there(dtype, backward):
    found = layer_ratio((2, 8, 16, 2), dtype, backward=backward, repeats=2)
    assert json.loads(json.dumps(found)) == found
    assert found["ratio"] > 0
    assert set(found["ms"]) == {"written_out", "fused"}
    assert found["largest_difference"] < (1e-5 if dtype is torch.float32 else 0.1)


def test_generation_is_compared():
    found = generation_ratio(1, tokens=3)
    assert found["ratio"] > 0
    assert set(found["ms"]) == {"again", "kept"}
