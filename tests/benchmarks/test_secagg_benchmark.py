"""The benchmark runs small, its JSON has the promised keys, and its figures hold together."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.secagg import masks, ours, paper, report
from benchmarks.secagg.sizes import Sizes

ROOT = Path(__file__).parents[2]
SMALL = {
    "clients": 8,
    "dim": 2000,
    "dropout": 0.125,
    "repeats": 2,
    "sampled-clients": 2,
    "large": 12,
    "paper": 1000,
}


@pytest.fixture(scope="module")
def result():
    command = [sys.executable, "-m", "benchmarks.secagg", "--json"]
    command += [f"--{key}={value}" for key, value in SMALL.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_promised_keys_are_there(result):
    assert {
        "cpu_ratio",
        "cpu_ratio_spread",
        "mask_ratio",
        "upload_bytes_per_coordinate",
        "server_peak_vectors",
        "is_exact",
        "ours",
        "flower",
        "flower_sparse",
        "large",
        "paper",
        "sizes",
        "machine",
        "repeats",
    } <= set(result)
    for side in ("ours", "flower", "large"):
        assert result[side]["client_cpu_s"]["median"] > 0
        assert result[side]["client_cpu_s"]["sum"] > result[side]["client_cpu_s"]["median"]
        assert result[side]["server_cpu_s"] > 0
    assert result["machine"]["cpus"] >= 1


def test_ratios_lie_within_their_spread(result):
    for key in ("cpu_ratio", "mask_ratio"):
        spread = result[f"{key}_spread"]
        assert 0 < spread["min"] <= result[key] == spread["median"] <= spread["max"]


def test_the_sum_is_exact_and_sampling_is_said(result):
    assert result["is_exact"]
    assert result["large"]["is_exact_at_small_dim"]
    assert result["ours"]["sampled_clients"] == 7  # of 8, one drops out: all that survive
    assert result["flower"]["sampled_clients"] == 2
    assert result["large"]["sampled_clients"] == 4


def test_upload_bytes_are_the_words_and_a_constant(result):
    by_bits, d = result["upload_bytes_per_coordinate"], 2000
    assert {"8", "12", "16", "32"} <= set(by_bits)
    for bits, value in by_bits.items():
        assert 64 < value * d - (2 if int(bits) <= 16 else 4) * d < 200  # header and signature
    assert 64 < result["ours"]["upload_bytes"] - 4 * d < 200
    assert result["flower"]["upload_bytes"] > 8 * d


def test_both_sides_have_the_same_graph(result):
    assert result["flower"]["num_shares"] == result["ours"]["masks_per_client"] + 1 == 8
    assert result["flower"]["threshold"] == result["sizes"]["threshold"]
    assert [each["num_shares"] for each in result["flower_sparse"]] == [3]


def test_the_cohort_on_paper_shows_its_fit(result):
    law = result["paper"]["fit"]
    assert set(law["client"]) == set(paper.CLIENT)
    assert set(law["server"]) == set(paper.SERVER)
    assert all(v >= 0 for laws in law.values() for terms in laws.values() for v in terms.values())
    assert [check["clients"] for check in result["paper"]["checks"]] == [8, 12]
    assert result["paper"]["total_cpu_s"] > result["paper"]["server_cpu_s"] > 0


def test_people_get_tables(result):
    console = Console(record=True, width=120, file=io.StringIO())
    report.show(result, console)
    text = console.export_text()
    for part in (
        "cpu_ratio",
        "mask_ratio",
        "upload bytes a coordinate",
        "on paper, 1,000 clients",
    ):
        assert part in text


@pytest.mark.parametrize("bits", [8, 16, 20, 32])
def test_a_measured_round_is_exact_at_every_modulus(bits):
    cost = ours.run(Sizes(5, 300, 1, 3, 0, bits=bits))
    assert cost.is_exact
    assert cost.memory["vector"] == 300 * (2 if bits <= 16 else 4)


def test_a_sampled_round_says_that_its_sum_was_not_compared():
    cost = ours.run(Sizes(6, 300, 1, 4, 0), sampled=2)
    assert cost.is_exact is None
    assert (cost.sampled_clients, len(cost.client["upload"])) == (2, 2)
    assert len(cost.client["unmask"]) == 2
    assert ours.run(Sizes(6, 300, 1, 4, 0), sampled=2, all_mask=True).is_exact


def test_the_bare_loop_adds_the_keystreams_that_we_add():
    seeds, d = [bytes([i]) * 32 for i in range(3)], 70_001
    expected = np.zeros(d, np.uint32)
    masks.add_masks(expected, [(seed, 1) for seed in seeds])
    for chunk in (1000, 1 << 14, 1 << 18):
        total = np.zeros(d, np.uint32)
        masks.bare_loop(total, seeds, chunk)
        assert np.array_equal(total, expected)
