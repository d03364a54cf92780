"""A whole deployment on this machine: authority, server, five devices, three private rounds, audit.

    make deploy-demo      (or: python simulations/deploy_demo.py --json)

Every step is the command that a person would type, in the folders that parties would have, over
TLS on 127.0.0.1 with node authentication: `federation init`, five times `join`, `approve` and
`admit`, `start` in six folders, `run`, and an audit with keys pinned beforehand. Each device has
conversations of its own. Whatever happens, what was started is stopped by its process id.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "deployment.yaml"
DEVICES = 5
_FEDATTN = Path(sys.executable).parent / "fedattn"


class Demo:
    """The steps, in order; `console` is where a person reads along."""

    def __init__(self, folder: Path, console: Console, overrides: Sequence[str]) -> None:
        self.folder, self.console, self.overrides = folder, console, list(overrides)
        self.server = folder / "server"
        self.devices = [folder / f"device-{number}" for number in range(1, DEVICES + 1)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """All of it; what was measured."""
        began = time.monotonic()
        for name, step in (
            ("conversations", self.write_shards),
            ("federation", self.make_federation),
            ("start", self.start),
            ("rounds", self.train),
            ("audit", self.audit),
        ):
            self.console.rule(f"[bold]{name}")
            at = time.monotonic()
            step()
            self.seconds[name] = round(time.monotonic() - at, 1)
        self.seconds["all"] = round(time.monotonic() - began, 1)
        return self.measured()

    def write_shards(self) -> None:
        """Give each device its own share of a corpus as a JSONL file."""
        from fedattn.config import load_config
        from fedattn.data import load_dialogues, partition

        data = load_config(CONFIG, self.overrides).data
        shares = partition(load_dialogues(data), data).train
        for device, share in zip(self.devices, shares, strict=True):
            path = self.folder / f"{device.name}.jsonl"
            path.write_text(
                "".join(
                    json.dumps(
                        {
                            "id": each.id,
                            "turns": [
                                {"speaker": turn.speaker, "text": turn.text} for turn in each.turns
                            ],
                        }
                    )
                    + "\n"
                    for each in share
                ),
                "utf-8",
            )
            self.console.print(f"{path.name}: {len(share)} conversations, for {device.name} alone")

    def make_federation(self) -> None:
        """Found, join, approve, admit; then pin what an auditor will want."""
        port, superlink = _free_port(), _free_port()
        self.fedattn(
            *("federation", "init", self.folder, "--host", "127.0.0.1", "--name", "demo"),
            *("--port", port, "--superlink-port", superlink),
        )
        authority = self.folder / "authority"
        for device in self.devices:
            name, data = device.name, self.folder / f"{device.name}.jsonl"
            self.fedattn(
                *("federation", "join", device, "--invitation", self.folder / "invitation"),
                *("--name", name, "--data", data),
            )
            policy = device / "policy.yaml"  # its owner decides: here, that one may vanish
            policy.write_text(policy.read_text().replace("min_cohort: 5", "min_cohort: 4"))
            # (in earnest a person compares the fingerprint, told by another channel)
            self.fedattn("federation", "approve", authority, device / "request.json", "--yes")
            approval = authority / "issued" / f"{name}.json"
            self.fedattn("federation", "join", device, "--approval", approval)
            self.fedattn("federation", "admit", self.server, approval)
        self.pin()

    def pin(self) -> None:
        """Keep aside what an auditor got from the parties themselves, before anything ran."""
        from fedattn.federation import read_federation
        from fedattn.signing import SigningKey

        pinned = self.folder / "auditor"
        pinned.mkdir()
        shutil.copy(self.folder / "authority" / "authority.pem", pinned)
        keys = [SigningKey.load(device / "identity.pem").public_bytes for device in self.devices]
        (pinned / "roster.txt").write_text("".join(f"{key.hex()}\n" for key in keys))
        self.server_key = str(read_federation(self.devices[0]).server_key)
        self.console.print(f"the auditor pins server key {self.server_key[:16]}…, and the roster")

    def start(self) -> None:
        """Start the server and every device, each in its folder as its owner would."""
        for folder in (self.server, *self.devices):
            with (folder / "start.log").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [str(_FEDATTN), "federation", "start", str(folder)],
                        env=self.env,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            self.console.print(f"{folder.name}: pid {self.processes[-1].pid}")

    def train(self) -> None:
        """Run three rounds on whoever is connected."""
        self.run_dir = self.folder / "run"
        overrides = [word for each in self.overrides for word in ("--set", each)]
        self.fedattn("federation", "run", self.server, CONFIG, "--out", self.run_dir, *overrides)

    def audit(self) -> None:
        """Recompute everything from what was pinned."""
        pinned = self.folder / "auditor"
        self.fedattn(
            *("audit", self.run_dir, "--server-key", self.server_key),
            *("--roster", pinned / "roster.txt", "--authority", pinned / "authority.pem"),
        )

    def measured(self) -> dict[str, Any]:
        """Seconds per step, round and trip, and what the run came to."""
        from fedattn.flower.progress_file import Follower, seconds_per_round, seconds_per_trip
        from fedattn.report import read_report

        follower = Follower(self.run_dir, from_start=True)
        entries = list(follower.read())
        rounds, trips = seconds_per_round(entries), seconds_per_trip(entries)
        report = read_report(self.run_dir)
        return {
            "outcome": report.outcome,
            "rounds": report.totals.rounds_released,
            "devices": DEVICES,
            "epsilon": report.totals.epsilon,
            "seconds": self.seconds,
            "seconds_per_round": [round(each, 2) for each in rounds],
            "seconds_per_trip": [round(each, 2) for each in trips],
            "median_round_s": round(statistics.median(rounds), 2),
            "median_trip_s": round(statistics.median(trips), 2),
            "folder": str(self.folder),
        }

    def stop(self) -> None:
        """Ask every process to end, by its own pid; kill who does not."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.processes:
            self.console.print(f"stopped {len(self.processes)} processes by their ids")

    def fedattn(self, *words: object) -> None:
        """One command, shown; an error ends the demo."""
        argv = [str(word) for word in words]
        shown = " ".join(word.replace(f"{self.folder}/", "") for word in argv)
        self.console.print(f"[dim]$ fedattn {shown}")
        is_told = argv[0] == "audit" or argv[:2] == ["federation", "run"]
        done = subprocess.run(
            [str(_FEDATTN), *argv],
            env=self.env,
            stdout=None if is_told and not self.console.stderr else subprocess.PIPE,
            stderr=None if is_told else subprocess.STDOUT,
        )
        if done.returncode:
            if done.stdout:
                self.console.print(done.stdout.decode(), markup=False)
            raise SystemExit(f"fedattn {shown}: exit code {done.returncode}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Parse arguments, run the demo, stop what it started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where; default: a new one in runs/")
    parser.add_argument("--set", action="append", default=[], help="override section.key=value")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    asked = parser.parse_args()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = (asked.folder or ROOT / "runs" / f"deploy-demo-{stamp}").resolve()
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, _interrupted)
    console = Console(stderr=asked.json)
    demo = Demo(folder, console, asked.set)
    try:
        measured = demo.run()
    finally:
        demo.stop()
    if asked.json:
        print(json.dumps(measured))
        return
    console.rule("[bold]measured")
    console.print(
        f"{measured['rounds']} rounds with {DEVICES} devices: {measured['median_round_s']} s a "
        f"round, {measured['median_trip_s']} s a trip; everything {measured['seconds']['all']} s\n"
        f"all of it is in {folder}"
    )


if __name__ == "__main__":
    main()
