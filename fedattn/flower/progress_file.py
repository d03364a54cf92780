"""A ServerApp's progress as a file: it runs in a process of its own, and a person watches another.

`progress.jsonl` in the run directory: one JSON object a line, what an Observer is told and when.
A file named `stop` beside it asks the run to end after the round under way. Nothing in it is
from a device's data; it is the server's own, and no part of the guarantee rests on it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fedattn.errors import FedattnError, RunError
from fedattn.flower.observer import Observer, RoundSummary

PROGRESS_FILE: Final = "progress.jsonl"
STOP_FILE: Final = "stop"


class FileObserver:
    """An Observer that writes; as a context it also writes why the run failed."""

    def __init__(self, run_dir: Path) -> None:
        self._stop = run_dir / STOP_FILE
        self._file = (run_dir / PROGRESS_FILE).open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise RunError(f"{run_dir}: this run is under way; wait for it, or stop it") from None
        self._stop.unlink(missing_ok=True)  # it asked an earlier process, before a resume

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, FedattnError):
            self._write("failed", text=str(error), exit_code=error.exit_code)
        self._file.close()

    def started(self, rounds: int, clients: int, bpb: float) -> None:
        """Write it."""
        self._write("started", rounds=rounds, clients=clients, bpb=bpb)

    def stage(self, number: int, stage: str, done: int, expected: int) -> None:
        """Write it."""
        self._write("stage", number=number, stage=stage, done=done, expected=expected)

    def note(self, text: str) -> None:
        """Write it."""
        self._write("note", text=text)

    def round_ended(self, summary: RoundSummary) -> None:
        """Write it."""
        self._write("round_ended", **dataclasses.asdict(summary))

    def stop_requested(self) -> bool:
        """Whether somebody made the file `stop`."""
        return self._stop.exists()

    def _write(self, kind: str, **fields: object) -> None:
        line = json.dumps({"at": time.time(), "kind": kind, **fields})
        self._file.write(line + "\n")
        self._file.flush()


class Follower:
    """Reads a run's progress as it grows, from where the file ended when this was made."""

    def __init__(self, run_dir: Path, *, from_start: bool = False) -> None:
        self._path = run_dir / PROGRESS_FILE
        self._at = 0 if from_start or not self._path.exists() else self._path.stat().st_size
        self.entries: list[dict[str, Any]] = []

    def read(self) -> Iterator[dict[str, Any]]:
        """The entries that were written since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._at += len(line)
                entry = json.loads(line)
                self.entries.append(entry)
                yield entry


def tell(observer: Observer, entry: dict[str, Any]) -> None:
    """Tell `observer` what an entry says."""
    fields = {key: value for key, value in entry.items() if key not in ("at", "kind")}
    match entry["kind"]:
        case "started":
            observer.started(**fields)
        case "stage":
            observer.stage(**fields)
        case "note":
            observer.note(**fields)
        case "round_ended":
            observer.round_ended(RoundSummary(**fields))


def seconds_per_trip(entries: list[dict[str, Any]]) -> list[float]:
    """How long each trip of each stage took: one message to all devices, and their replies."""
    found: list[float] = []
    began: float | None = None
    for entry in entries:
        if entry["kind"] != "stage":
            continue
        if entry["done"] == 0:
            began = entry["at"]
        elif began is not None and entry["done"] == entry["expected"]:
            found.append(entry["at"] - began)
            began = None
    return found


def seconds_per_round(entries: list[dict[str, Any]]) -> list[float]:
    """How long each round took, from its first message to its release."""
    found: list[float] = []
    began: float | None = None
    for entry in entries:
        if entry["kind"] == "stage" and began is None:
            began = entry["at"]
        elif entry["kind"] == "round_ended" and began is not None:
            found.append(entry["at"] - began)
            began = None
    return found
