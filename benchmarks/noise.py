"""Gaussian noise added in place beside `torch.randn`, by wall clock: `python -m benchmarks.noise`.

`ratio_to_randn` is our time over that of `torch.randn(n)` in float32 (the goal is at most 1), in
turns, median and range of the repeats of one run; `ratio_to_randn64` is over float64. Ours rounds
float32 values to the grid and adds noise to them in place, on all cores this process may use
unless `--threads` says otherwise. `torch.randn` draws on one thread whatever it is given.
`cpu_ns` are of all threads together. A busy machine gives ours fewer cores than it counts on:
`load` is its 1-minute load average over its cores before the run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.secagg.spread import Spread
from fedattn.noise import add_gaussian
from fedattn.randomness import Randomness

SIZES = (20_480, 1_000_000, 10_000_000)
GOAL = 1.0


def measure(
    sizes: tuple[int, ...] = SIZES,
    *,
    repeats: int = 15,
    values: int = 2_000_000,
    threads: int | None = None,
) -> dict[str, Any]:
    """Every size; about `values` numbers are drawn each repeat."""
    used = threads or len(os.sched_getaffinity(0))
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    cells = [_compare(n, repeats, max(1, values // n), used) for n in sizes]
    largest = max(cells, key=lambda cell: cell["n"])
    return {
        "threads": used,
        "torch_threads": torch.get_num_threads(),
        "load": load,
        "repeats": repeats,
        "goal": GOAL,
        "sizes": cells,
        "ratio_to_randn": largest["ratio_to_randn"]["median"],
    }


def _compare(n: int, repeats: int, calls: int, threads: int) -> dict[str, Any]:
    randomness, held = Randomness.from_os(), np.zeros(n, np.float32)
    steps: dict[str, Callable[[], object]] = {
        "randn": lambda: torch.randn(n),
        "ours": lambda: add_gaussian(held, 1.3, randomness, threads=threads),
        "randn64": lambda: torch.randn(n, dtype=torch.float64),
    }
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            before, before_cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                step()
            wall[name].append((time.perf_counter() - before) / calls)
            cpu[name].append((time.process_time() - before_cpu) / calls)
    for name in steps:  # the first fills the caches
        wall[name], cpu[name] = wall[name][1:], cpu[name][1:]
    return {
        "n": n,
        "ratio_to_randn": Spread.of_ratios(wall["ours"], wall["randn"]).as_dict(),
        "ratio_to_randn64": Spread.of_ratios(wall["ours"], wall["randn64"]).as_dict(),
        "wall_ns": {name: float(np.median(each)) / n * 1e9 for name, each in wall.items()},
        "cpu_ns": {name: float(np.median(each)) / n * 1e9 for name, each in cpu.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks.noise", description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of ours; default: the cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    result = measure(repeats=given.repeats, threads=given.threads)
    if given.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['threads']} threads, {result['repeats']} repeats in turns, load a core before "
        f"{result['load']:.2f}; goal: ratio at most {GOAL:g}"
    )
    print(f"{'n':>10} {'randn ns':>9} {'ours ns':>8} {'ours CPU':>9}  ratio (range), over float64")
    for cell in result["sizes"]:
        ratio, wide = cell["ratio_to_randn"], cell["ratio_to_randn64"]
        print(
            f"{cell['n']:10,} {cell['wall_ns']['randn']:9.2f} {cell['wall_ns']['ours']:8.2f} "
            f"{cell['cpu_ns']['ours']:9.2f}  {ratio['median']:.2f} ({ratio['min']:.2f} to "
            f"{ratio['max']:.2f}), {wide['median']:.2f}"
        )


if __name__ == "__main__":
    main()
