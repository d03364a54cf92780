"""A seeded run gives the same model and the same ledgers with any number of workers."""

from __future__ import annotations

import json

import pytest

from fedattn.entries import Release
from fedattn.ledger import read_ledger
from fedattn.simulate import simulate
from tests.federation import conversations, tiny, write

MODES = {
    "local": {},
    "arithmetic": {"secure_aggregation": "arithmetic"},
    "client": {
        "privacy": {
            "unit": "client",
            "noise": "distributed",
            "max_units": 4,
            "sampling_rate": 1.0,
            "noise_multiplier": 1.0,
        }
    },
}


def outcome(folder, workers, rounds=2, **changes):
    """The hashes of the released models, the survivors, and what each device wrote down."""
    folder.mkdir()
    data = write(folder / "data.jsonl", conversations())
    faults = [{"round": 1, "stage": "confirm", "clients": 1}]
    train = {"rounds": rounds, "threads": 0}  # torch's own choice is one thread here
    config = tiny(data, seed=7, workers=workers, faults=faults, train=train, **changes)
    run_dir = folder / "run"
    run_dir.mkdir()
    simulate(config, run_dir)
    bodies = [entry.body for entry in read_ledger(run_dir / "ledger.jsonl")]
    released = [
        (body.round, body.model_after, body.survivors)
        for body in bodies
        if isinstance(body, Release)
    ]
    spent = {
        path.parent.name: [
            (line["kind"], line["body"].get("round"), line["body"].get("event"))
            for line in map(json.loads, path.read_text().splitlines())
        ]
        for path in run_dir.glob("devices/*/spend.jsonl")
    }
    assert len(released) == rounds
    assert len(spent) == 4
    return released, spent


def test_two_workers_give_what_one_process_gives(tmp_path):
    assert outcome(tmp_path / "two", 2, 1) == outcome(tmp_path / "none", 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_workers_gives_what_one_process_gives(tmp_path, mode):
    alone = outcome(tmp_path / "0", 0, **MODES[mode])
    for workers in (1, 2, 3):
        assert outcome(tmp_path / str(workers), workers, **MODES[mode]) == alone
