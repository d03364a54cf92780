"""Seconds per trip and per round of a deployment on this machine: `python -m benchmarks.trips`.

A trip is one message to every device and all replies; a round of secure aggregation is five. The
same federation, config and data three ways, in turns, each in folders and processes of its own:

    ours      the resident runner; SuperNodes ask for messages every 0.5 s
    patient   the resident runner; every 3 s, as Flower's SuperNodes do
    stock     Flower's own SuperNode with `--isolation subprocess`: a process for each message

The model is tiny, so that what is measured is the way of a message, not training. Wall-clock
seconds: medians and ranges over the trips and rounds of all repeats; the first round of each run,
in which devices read their data for the first time, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedattn.flower.deployment.commands import Command, supernode
from fedattn.flower.deployment.folders import DeviceFolder, choose_runtime_port
from tests.deployment.loopback import Loopback
from tests.federation import conversations, tiny, write

WAYS = {"ours": 0.5, "patient": 3.0, "stock": 3.0}
_FLOWER = str(Path(sys.executable).parent / "flower-supernode")


def stock(folder: DeviceFolder) -> Mapping[str, Callable[[], Command]]:
    """Flower's SuperNode with a process for each message, and no runner."""

    def command() -> Command:
        (folder.path / "logs").mkdir(exist_ok=True)
        ours = supernode(folder, choose_runtime_port(folder.path))
        words = list(ours.argv[ours.argv.index("--superlink") :])
        words[words.index("--isolation") + 1] = "subprocess"
        secret = words.index("--superexec-auth-secret-file")
        del words[secret : secret + 2]
        return Command(ours.name, (_FLOWER, *words), ours.env, ours.log)

    return {"supernode": command}


def run_once(way: str, folder: Path, *, devices: int, rounds: int) -> dict[str, list[float]]:
    """One federation, `rounds` + 1 rounds: seconds of each trip and round after the first."""
    items = conversations(40)
    shards = [write(folder / f"shard-{i}.jsonl", items[i::devices]) for i in range(devices)]
    config = tiny(
        write(folder / "public.jsonl", conversations(20, 1)),
        data={"clients": devices},
        train={"rounds": rounds + 1},
        secagg={"threshold": devices - 1, "max_colluding": 0, "stage_timeout_s": 300},
        eval={"examples": 2, "progress_examples": 0, "samples": 0},
    )
    processes = stock if way == "stock" else None
    with Loopback(folder, config, shards, poll_s=WAYS[way], processes=processes) as federation:
        federation.until(lambda: federation.online() == devices, "all devices online", 180)
        done = federation.run()
    if done.report.totals.rounds_released != rounds + 1:
        raise RuntimeError(f"{way}: a round was not released; its trips mean nothing")
    return {"trip_s": done.trips_s[5:], "round_s": done.rounds_s[1:]}


def measure(*, devices: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Every way `repeats` times, in turns."""
    found: dict[str, dict[str, list[float]]] = {way: {"trip_s": [], "round_s": []} for way in WAYS}
    for _ in range(repeats):
        for way, lists in found.items():
            folder = Path(tempfile.mkdtemp(prefix="trips-"))
            try:
                for key, values in run_once(way, folder, devices=devices, rounds=rounds).items():
                    lists[key] += values
            finally:
                shutil.rmtree(folder)
    result: dict[str, Any] = {"devices": devices, "rounds": rounds, "repeats": repeats}
    for way, lists in found.items():
        result[way] = {"poll_s": WAYS[way]} | {
            key: {
                "median": round(statistics.median(values), 2),
                "range": [round(min(values), 2), round(max(values), 2)],
                "count": len(values),
            }
            for key, values in lists.items()
        }
    ours = statistics.median(found["ours"]["round_s"])
    result["stock_over_ours"] = round(statistics.median(found["stock"]["round_s"]) / ours, 2)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="measured rounds of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the processes would stay
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result = measure(devices=asked.devices, rounds=asked.rounds, repeats=asked.repeats)
    if asked.json:
        print(json.dumps(result))
        return
    print(
        f"{asked.devices} devices, {asked.rounds} measured rounds in each of {asked.repeats} runs"
    )
    for way in WAYS:
        trip, round_ = result[way]["trip_s"], result[way]["round_s"]
        print(
            f"{way:8} {trip['median']:6.2f} s a trip {trip['range']}, "
            f"{round_['median']:6.2f} s a round {round_['range']}"
        )
    print(f"a round Flower's stock way takes {result['stock_over_ours']} times as long")


if __name__ == "__main__":
    main()
