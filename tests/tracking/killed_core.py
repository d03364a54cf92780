"""A tracked run whose wandb process is killed under way; a script, to see how it ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from fedattn.config import ROWS, load_config
from fedattn.flower.observer import RoundSummary, SilentObserver
from fedattn.tracking import tracking

SUMMARY = RoundSummary(1, True, 4, 4, dict.fromkeys(ROWS, 2.0), None, None)


class Notes(SilentObserver):
    """Remembers notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        """Print and remember it."""
        print(text, flush=True)
        self.said.append(text)


def kill_wandb_core() -> None:
    """Kill the children of this process that are wandb's own."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    cores = [
        int(child)
        for child in children
        if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert cores
    for each in cores:
        os.kill(each, signal.SIGKILL)


def main() -> None:
    """Log, kill, log until the tracker is dropped, end. Arguments: config, folder."""
    notes = Notes()
    config = load_config(Path(sys.argv[1]), [])
    with tracking(notes, ["wandb"], Path(sys.argv[2]), config) as observer:
        observer.round_ended(SUMMARY)
        kill_wandb_core()
        deadline = time.monotonic() + 5
        while not notes.said and time.monotonic() < deadline:
            observer.round_ended(SUMMARY)
            time.sleep(0.05)
    print("the run went on", flush=True)


if __name__ == "__main__":
    main()
