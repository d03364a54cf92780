"""The Ray engine: what it refuses, what it reserves, and that nothing of it is left behind."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest

from fedattn.errors import RunError
from fedattn.flower import ray_engine
from fedattn.flower.observer import SilentObserver
from fedattn.ledger import read_ledger
from fedattn.simulate import simulate
from tests.federation import conversations, tiny, write
from tests.marks import ON_RAY


def on_ray(test):
    for mark in ON_RAY:
        test = mark(test)
    return test


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", conversations())


def test_without_ray_the_remedy_is_named(make_config, monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"^engine ray: Ray is not installed; run `pip install"):
        ray_engine.require_runnable(make_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faults": [{"round": 1, "clients": 1}]}, "`faults` are acted out by the embedded engine"),
        ({"train__device": "cuda:1"}, r"train\.device is cuda:1, .* use cuda:0 or auto"),
    ],
)
def test_what_ray_cannot_do_is_refused(make_config, monkeypatch, change, message):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: object())
    ray_engine.require_runnable(make_config(train__device="cuda:0"))
    with pytest.raises(RunError, match=message):
        ray_engine.require_runnable(make_config(**change))


@pytest.mark.parametrize(
    ("device", "threads", "gpus", "reserved"),
    [
        ("cpu", 0, 2.0, (1, 0)),
        ("cpu", 3, 0.0, (3, 0)),
        ("auto", 1, 0.0, (1, 0)),
        ("auto", 1, 2.0, (1, 1)),
        ("cuda", 1, 1.0, (1, 1)),
        ("cuda:0", 2, 1.0, (2, 1)),
    ],
)
def test_a_client_reserves_its_threads_and_a_gpu_if_it_wants_one(
    make_config, device, threads, gpus, reserved
):
    config = make_config(train__device=device, train__threads=threads)
    found = ray_engine.client_resources(config, 4.0, gpus)
    assert (found["num_cpus"], found["num_gpus"]) == reserved


@pytest.mark.parametrize(
    ("device", "threads", "message"),
    [
        ("cpu", 5, "train.threads is 5, and Ray has 4 CPUs; lower it"),
        ("cuda:0", 1, "train.device is cuda:0, and Ray has no GPU; use cpu"),
    ],
)
def test_a_client_that_fits_no_machine_is_refused(make_config, device, threads, message):
    config = make_config(train__device=device, train__threads=threads)
    with pytest.raises(RunError, match=f"^engine ray: {message}$"):
        ray_engine.client_resources(config, 4.0, 0.0)


def descendants() -> set[int]:
    """The pids of running processes that this one started, at whatever remove."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state != "Z":
            parents[int(entry.name)] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def running(pids: set[int]) -> set[int]:
    return {
        pid
        for pid in pids
        if (stat := Path(f"/proc/{pid}/stat")).exists()
        and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    }


class Looks(SilentObserver):
    """Remembers what ran during the first upload; interrupts it if told to."""

    def __init__(self, *, is_interrupting: bool = False) -> None:
        self.is_interrupting, self.seen = is_interrupting, set[int]()

    def stage(self, number, stage, done, expected):
        if (number, stage) == (1, "upload"):
            self.seen |= descendants()
            if self.is_interrupting:
                raise KeyboardInterrupt


def assert_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) > 2
    assert not running(pids)
    gc.collect()  # what Ray left behind is complained about here, where that is expected


@on_ray
def test_a_run_leaves_no_process_and_nothing_in_the_users_home(data, tmp_path, monkeypatch):
    home, run_dir = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run_dir.mkdir()
    monkeypatch.setenv("HOME", str(home))
    observer = Looks()
    result = simulate(tiny(data, train={"rounds": 1}), run_dir, engine="ray", observer=observer)
    assert result.report.outcome == "completed"
    assert_gone(observer.seen)
    assert list(home.iterdir()) == []


@on_ray
def test_an_interrupted_run_leaves_no_process_and_a_whole_ledger(data, tmp_path):
    observer = Looks(is_interrupting=True)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny(data), tmp_path, engine="ray", observer=observer)
    assert time.monotonic() - began < tiny(data).secagg.stage_timeout_s / 2
    kinds = [entry.kind for entry in read_ledger(tmp_path / "ledger.jsonl")]
    assert kinds == ["open", "intent", "abort", "close"]
    assert_gone(observer.seen)
