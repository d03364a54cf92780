"""The embedded engine around clients that do next to nothing: `python -m benchmarks.engine`.

Each client gets a model of `--params` float32 numbers and replies with a fresh vector, which the
engine adds up; every word of the sum is compared with a formula. `ms_per_client_round` is the wall
time of a round, from its first message to its sum, over its clients, by the number of clients:
median and range over the repeats, each of which runs every number in turn. `growth` is the figure
of the largest number over that of the smallest, repeat by repeat. `cpu_ms_per_client_round` is CPU
time of all the engine's processes, which other programs on the machine stretch less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from benchmarks import idle
from benchmarks.secagg.spread import Spread
from fedattn.flower.arrays import to_array
from fedattn.flower.embedded.contexts import LazyNodes
from fedattn.flower.grid import EmbeddedGrid

CLIENTS = (100, 400, 1_000, 10_000)
PARAMS = 1_000_000
ROUNDS = 3
REPEATS = 5
GOAL_MS, AIM_MS, GOAL_GROWTH = 2.0, 1.0, 1.2
REGISTERED = (1_000, 100_000)
TAKING_PART = 100
RAY_CLIENTS = (100, 400)
_ROOT = Path(__file__).parent.parent
_THREADS = 1  # of torch and BLAS, in each process


def measure(
    clients: tuple[int, ...] = CLIENTS,
    params: int = PARAMS,
    *,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    workers: int | None = None,
) -> dict[str, Any]:
    """Every number of clients in turn, `repeats` times; without Flower-Ray and the population."""
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    took: dict[int, list[float]] = {n: [] for n in clients}
    cpu: dict[int, list[float]] = {n: [] for n in clients}
    with Engine(max(clients), params, workers) as engine:
        is_exact = engine.round(min(clients))[1]  # starts the workers
        for _ in range(repeats):
            for n in clients:
                before, runs = engine.cpu(), max(1, min(rounds, 1_000 // n))
                seconds = 0.0
                for _ in range(runs):
                    each, exact = engine.round(n)
                    seconds, is_exact = seconds + each, is_exact and exact
                took[n].append(seconds / runs / n * 1e3)
                cpu[n].append((engine.cpu() - before) / runs / n * 1e3)
        memory = engine.memory()
    few, many = min(clients), max(clients)
    return {
        "params": params,
        "workers": workers,
        "threads": _THREADS,
        "cores": len(os.sched_getaffinity(0)),
        "repeats": repeats,
        "goal_ms": GOAL_MS,
        "aim_ms": AIM_MS,
        "ms_per_client_round": {
            "ours": {str(n): Spread.of(took[n]).median for n in clients},
            "flower_ray": None,
        },
        "cpu_ms_per_client_round": {str(n): Spread.of(cpu[n]).as_dict() for n in clients},
        "spread_ms": {str(n): Spread.of(took[n]).as_dict() for n in clients},
        "growth": Spread.of_ratios(took[many], took[few]).as_dict(),
        "goal_growth": GOAL_GROWTH,
        "is_exact": is_exact,
        "peak_memory_bytes": memory,
        "load": os.getloadavg()[0],
    }


class Engine:
    """An embedded grid of idle clients, the first `n` of which take part in a round."""

    def __init__(self, registered: int, params: int, workers: int) -> None:
        self._nodes = range(1, registered + 1)
        nodes = LazyNodes(self._nodes, lambda node: {"partition-id": node - 1})
        self._grid = EmbeddedGrid("benchmarks.idle:app", nodes, workers=workers, threads=_THREADS)
        self._params, self._number = params, 0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._grid.close()

    def round(self, n: int) -> tuple[float, bool]:
        """Its seconds, and whether the sum is right in every word."""
        self._number += 1
        grid, number, cohort = self._grid, self._number, self._nodes[:n]
        model = np.arange(number, number + self._params, dtype=np.float32)
        began = time.perf_counter()
        shared = ArrayRecord({"vector": to_array(model)})
        names = grid.push_summed(
            (
                grid.create_message(
                    RecordDict({"model": shared}), idle.MESSAGE_TYPE, node, str(number)
                )
                for node in cohort
            ),
            self._params,
            idle.TakeWords(),
        )
        answered = sum(not reply.has_error() for reply in grid.pull_messages(names))
        total = grid.take_sum()
        took = time.perf_counter() - began
        factors = sum(idle.factor(node, number) for node in cohort) % 2**32
        wanted = model.view(np.uint32) * np.uint32(factors)
        return took, answered == n and np.array_equal(total, wanted)

    def cpu(self) -> float:
        """Seconds of CPU that this process and the workers have used."""
        return time.process_time() + sum(_cpu(pid) for pid in self._grid.worker_pids)

    def memory(self) -> dict[str, int | list[int]]:
        """Peak resident memory of this process and of each worker."""
        return {"parent": _peak("self"), "workers": [_peak(p) for p in self._grid.worker_pids]}


def population(params: int = PARAMS) -> dict[str, Any]:
    """Peak memory of the engine's process, a process each, by how many clients are registered."""
    peaks = {}
    for registered in REGISTERED:
        command = [sys.executable, "-m", "benchmarks.engine", "--registered", str(registered)]
        done = subprocess.run(
            [*command, "--params", str(params)],
            cwd=_ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks[str(registered)] = json.loads(done.stdout)
    few, many = (peaks[str(n)]["parent"] for n in REGISTERED)
    return {
        "taking_part": TAKING_PART,
        "registered": peaks,
        "parent_bytes_per_further_client": (many - few) / (REGISTERED[1] - REGISTERED[0]),
    }


def flower_ray(params: int = PARAMS) -> dict[str, float] | None:
    """Milliseconds per client-round of Flower's own simulation; None where Ray is not installed."""
    if find_spec("ray") is None:
        return None
    took = {}
    for n in RAY_CLIENTS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.flower_ray", str(n), str(params), str(ROUNDS)],
            cwd=_ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        took[str(n)] = json.loads(done.stdout.splitlines()[-1])["ms_per_client_round"]
    return took


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(process: int | str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=__doc__)
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)), help="numbers of clients")
    parser.add_argument("--params", type=int, default=PARAMS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of a repeat, up to 1,000/n")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--workers", type=int, help="default: one a core")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--registered", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.registered is not None:
        with Engine(given.registered, given.params, 1) as engine:
            assert engine.round(TAKING_PART)[1]
            print(json.dumps(engine.memory()))
        return
    result = measure(
        tuple(int(n) for n in given.clients.split(",")),
        given.params,
        rounds=given.rounds,
        repeats=given.repeats,
        workers=given.workers,
    )
    result["population"] = population(given.params)
    result["ms_per_client_round"]["flower_ray"] = ray = flower_ray(given.params)
    if given.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['params']:,} parameters, {result['workers']} workers of {_THREADS} thread on "
        f"{result['cores']} cores, {result['repeats']} repeats; goal: {GOAL_MS:g} ms per "
        f"client-round (aim {AIM_MS:g}), growth at most {GOAL_GROWTH:g}"
    )
    print(f"{'clients':>8} {'ms':>6} {'CPU ms':>7}  range of ms")
    for n, spread in result["spread_ms"].items():
        cpu = result["cpu_ms_per_client_round"][n]["median"]
        print(
            f"{n:>8} {spread['median']:6.2f} {cpu:7.2f}  {spread['min']:.2f} to {spread['max']:.2f}"
        )
    growth, peak = result["growth"], result["peak_memory_bytes"]
    print(f"growth {growth['median']:.2f} ({growth['min']:.2f} to {growth['max']:.2f})")
    print(f"load of the machine: {result['load']:.1f} on {result['cores']} cores")
    print(f"every sum exact: {'yes' if result['is_exact'] else 'NO'}")
    each = ", ".join(f"{worker / 1e6:.0f}" for worker in peak["workers"])
    print(f"peak memory: {peak['parent'] / 1e6:.0f} MB, workers {each} MB")
    for registered, peaks in result["population"]["registered"].items():
        print(f"{int(registered):,} registered, {TAKING_PART} in: {peaks['parent'] / 1e6:.0f} MB")
    for n, took in (ray or {}).items():
        print(f"Flower-Ray, {n} clients: {took:.1f} ms")
    if ray is None:
        print("Flower-Ray: not measured, Ray is not installed (the `sim` extra)")


if __name__ == "__main__":
    main()
