"""How long commands take to start, beside the interpreter's own: `python -m benchmarks.startup`.

Wall clock and CPU of fresh processes, in turns; each figure is a command's time less that of
`python -c pass` in the same turn, the median and range of the repeats. CPU hardly depends on what
else the machine does. `audit_start` ends where the audit has
found that there is no such run: everything but the work. With `--run DIR` the whole audit of that
run is measured, too; what it takes beyond its start is the two accountants, which it must load and
run, as it trusts no stored number.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.secagg.spread import Spread

GOALS = {"help": 0.3, "audit_start": 1.0}  # seconds beyond the interpreter's own
_FEDATTN = (sys.executable, "-m", "fedattn.cli")
_MISSING_RUN = 2  # the exit code of bad input


def measure(repeats: int = 11, run: Path | None = None) -> dict[str, Any]:
    """Every command `repeats` times, in turns, after one turn that fills the disk's cache."""
    with tempfile.TemporaryDirectory() as folder:
        commands: dict[str, tuple[Sequence[str], int]] = {
            "interpreter": ((sys.executable, "-c", "pass"), 0),
            "help": ((*_FEDATTN, "--help"), 0),
            "audit_start": ((*_FEDATTN, "audit", str(Path(folder) / "none")), _MISSING_RUN),
        }
        if run is not None:
            commands["audit_run"] = ((*_FEDATTN, "audit", str(run), "--json"), 0)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(repeats + 1):
            for name, (command, code) in commands.items():
                wall_and_cpu = _seconds(command, code)
                if turn:
                    taken[name].append(wall_and_cpu)
    own = taken.pop("interpreter")

    def beyond(clock: int) -> dict[str, dict[str, float]]:
        return {
            name: Spread.of(
                each[clock] - less[clock] for each, less in zip(taken[name], own, strict=True)
            ).as_dict()
            for name in taken
        }

    return {
        "repeats": repeats,
        "load": os.getloadavg()[0],
        "goals": GOALS,
        "interpreter_s": Spread.of(wall for wall, _ in own).as_dict(),
        "beyond_interpreter_s": beyond(0),
        "cpu_beyond_interpreter_s": beyond(1),
    }


def _seconds(command: Sequence[str], code: int) -> tuple[float, float]:
    """Wall clock and CPU of one process."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(
            f"{' '.join(command)}: exit {done.returncode}, expected {code}: {done.stderr[-500:]!r}"
        )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--run", type=Path, help="a finished run that passes its audit")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    result = measure(given.repeats, given.run)
    if given.json:
        print(json.dumps(result, indent=1))
        return
    own = result["interpreter_s"]
    print(
        f"{result['repeats']} repeats in turns, load {result['load']:.1f}; seconds, median (range)"
    )
    print(f"{'interpreter':12} {own['median']:.3f} ({own['min']:.3f}-{own['max']:.3f})")
    for name, each in result["beyond_interpreter_s"].items():
        goal = f", goal {GOALS[name]:g}" if name in GOALS else ""
        shown = f"{each['median']:.3f} ({each['min']:.3f}-{each['max']:.3f})"
        cpu = result["cpu_beyond_interpreter_s"][name]["median"]
        print(f"{name:12} {shown} beyond it, CPU {cpu:.3f}{goal}")


if __name__ == "__main__":
    main()
