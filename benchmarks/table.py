"""Every benchmark in turn, and one table of them: `make bench` writes docs/benchmarks.md.

Each runs alone in a process of its own and compares with its baseline in that process's run, so
rows are ratios that another machine can repeat; seconds are given where a bar is in seconds. Takes
about twenty minutes on two cores and wants them for itself. `--only NAME` runs some of them and
leaves the other rows as they are in docs/benchmarks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parent.parent / "docs"
COMMANDS: dict[str, list[str]] = {
    "dp_step": [],
    "noise": [],
    "engine": [],
    "round": [],
    "secagg": ["--large", "0", "--paper", "0"],
    "startup": [],
}


class Row(NamedTuple):
    """One figure: what was measured against what, the result, what is asked for."""

    name: str
    what: str
    result: str
    bar: str


def _range(spread: dict[str, float], digits: int = 2) -> str:
    low, middle, high = (f"{spread[key]:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} [{low}, {high}]"


def _dp_step(found: dict[str, Any]) -> Iterator[Row]:
    for size in found["sizes"]:
        where = f"{size['name']}, {size['trainable']}"
        bars = (f"{found['bar']:g} (aim {found['aim']:g})", f"{found['memory_bar']:g}")
        for kind, label in (
            ("ours", "book-keeping"),
            ("opacus_hooks", "Opacus hooks"),
            ("opacus_ghost", "Opacus ghost (on a twin without shared weights)"),
        ):
            time_bar, memory_bar = bars if kind == "ours" else ("", "")
            base = f"{where}: private step by {label} / plain step"
            yield Row("dp_step", f"{base}, time", _range(size[f"ratio_{kind}"]), time_bar)
            memory = f"{size[f'memory_ratio_{kind}']:.2f}"
            yield Row("dp_step", f"{base}, peak memory", memory, memory_bar)


def _noise(found: dict[str, Any]) -> Iterator[Row]:
    for size in found["sizes"]:
        what = f"{size['n']:,} values: ours / torch.randn float32, wall time"
        yield Row("noise", what, _range(size["ratio_to_randn"]), "1")


def _engine(found: dict[str, Any]) -> Iterator[Row]:
    ours = found["ms_per_client_round"]["ours"]
    bar = f"{found['goal_ms']:g} (aim {found['aim_ms']:g})"
    for clients in ours:
        what = f"ms per client-round, {int(clients):,} idle clients, {found['params']:,} parameters"
        yield Row("engine", what, _range(found["spread_ms"][clients]), bar)
    flower = found["ms_per_client_round"]["flower_ray"] or {}
    for clients, each in flower.items():
        what = f"the same on Flower's Ray simulation, {int(clients):,} clients"
        yield Row("engine", what, f"{each:.0f}", "")
    smallest, largest = min(map(int, ours)), max(map(int, ours))
    growth = _range(found["growth"])
    yield Row("engine", f"growth per client from {smallest} to {largest:,} clients", growth, "1.2")


def _round(found: dict[str, Any]) -> Iterator[Row]:
    for kind, bar in (("arithmetic", f"{found['goal']:g}"), ("masked", "")):
        what = f"cross-device round, {kind}: plain torch loop / ours, wall time"
        yield Row("round", what, _range(found[kind]["throughput_ratio"]), bar)


def _secagg(found: dict[str, Any]) -> Iterator[Row]:
    result = _range(found["cpu_ratio_spread"], 3)
    yield Row("secagg", "a round, 100 clients, 1M: CPU ours / Flower's SecAgg+", result, "0.10")


def _startup(found: dict[str, Any]) -> Iterator[Row]:
    for key, what, bar in (
        ("help", "`fedattn --help`", "0.3"),
        ("audit_start", "`fedattn audit`, start", "1"),
    ):
        result = _range(found["beyond_interpreter_s"][key])
        yield Row("startup", f"{what}: seconds beyond the interpreter's own", result, bar)


ROWS = {
    "dp_step": _dp_step,
    "noise": _noise,
    "engine": _engine,
    "round": _round,
    "secagg": _secagg,
    "startup": _startup,
}


def run(name: str) -> dict[str, Any]:
    """One benchmark's JSON, with when and where it ran."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *COMMANDS[name], "--json"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {
        "at": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        **json.loads(ran.stdout),
    }


def machine() -> str:
    """Processor, cores and versions that figures hold for."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = named[0].split(":")[1].strip() if named else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{each} {version(each)}" for each in ("torch", "opacus", "flwr"))
    return f"{name}, {cores} cores, Python {platform.python_version()}, {versions}"


def table(found: dict[str, dict[str, Any]]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks, as run",
        "",
        "Written by `make bench`. What each figure is and is not:",
        "[benchmarks/README.md](../benchmarks/README.md). Medians [range] of one run's repeats;",
        "a / b is the ratio of both in that run.",
        "",
        "| benchmark | what | result | asked for |",
        "|---|---|---|---|",
    ]
    for name, make in ROWS.items():
        if name in found:
            lines += ["| " + " | ".join(row) + " |" for row in make(found[name])]
    lines.append("")
    for name, each in found.items():
        if name in ROWS:
            threads = each.get("threads", each.get("threads_plain", 1))
            lines.append(f"- `{name}`: {each['at']}, {each['machine']}; {threads} threads")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table")
    parser.add_argument("--only", action="append", choices=tuple(COMMANDS))
    given = parser.parse_args(arguments)
    kept = DOCS / "benchmarks.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for name in given.only or COMMANDS:
        print(name, flush=True)
        found[name] = run(name)
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (DOCS / "benchmarks.md").write_text(table(found))


if __name__ == "__main__":
    main()
