"""Runs in child processes that kill themselves (SIGKILL) at a chosen place, and how they go on.

The children are forked from a server that has torch and the accountants warm and has run nothing,
so each starts in milliseconds and no child inherits threads.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fedattn.config import Config, config_from_json
from fedattn.flower import grid, rounds, server_app, wire  # noqa: F401 (warm)
from fedattn.ledger import Ledger
from fedattn.simulate import simulate


class Place(NamedTuple):
    """Where a process kills itself: `when` the `nth` `what` of this kind happens there."""

    where: str  # ledger, device, message, checkpoint, durable
    what: str  # kind of entry, stage, name of a file
    when: str  # before, torn, after; of a message: request, reply
    nth: int = 1

    def __str__(self) -> str:
        return "-".join(map(str, self))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Striker:
    """Counts how often its place is reached."""

    def __init__(self, place: Place) -> None:
        self.place, self._seen = place, 0

    def is_now(self, what: str) -> bool:
        self._seen += what == self.place.what
        return what == self.place.what and self._seen == self.place.nth


def _around(striker: Striker, name: Callable[..., str], original: Callable[..., Any]) -> Any:
    """`original`, killed before it, with half of what it first writes, or after it."""
    when = striker.place.when

    def struck(*arguments: Any, **named: Any) -> Any:
        if not striker.is_now(name(*arguments)):
            return original(*arguments, **named)
        if when == "before":
            die()
        if when == "torn":
            _tear()
        result = original(*arguments, **named)
        die()
        return result

    return struck


def _tear() -> None:
    """From now on a write of a line ends in the middle, and the process with it."""
    whole = os.write

    def write(handle: int, data: bytes) -> int:
        if data.endswith(b"}\n"):
            whole(handle, data[: len(data) // 2])
            die()
        return whole(handle, data)

    os.write = write


def arm(place: Place) -> list[Any]:
    """Make this process die at `place`; the taps for its grid."""
    from fedattn import device_ledger, durable
    from fedattn.flower import checkpoints, results

    striker = Striker(place)
    if place.where == "ledger":
        Ledger.append = _around(striker, lambda _self, kind, _body: kind, Ledger.append)
    elif place.where == "device":
        original = device_ledger.Session.append
        device_ledger.Session.append = _around(striker, lambda _s, kind, _a: kind, original)
    elif place.where == "message":
        return [_tap(striker)]
    elif place.where == "checkpoint":
        original = getattr(checkpoints.Checkpoints, place.what)
        struck = _around(striker, lambda *_: place.what, original)
        setattr(checkpoints.Checkpoints, place.what, struck)
    elif place.where == "file":  # a file of the report takes its place, or one of a checkpoint
        struck = _around(striker, _name_of, durable.put_in_place)
        durable.put_in_place = checkpoints.put_in_place = results.put_in_place = struck
    else:
        raise ValueError(place)
    return []


def _name_of(_part: Path, path: Path) -> str:
    """Checkpoints and models by their kind: the names of the former are hashes."""
    return "safetensors" if path.suffix == ".safetensors" else path.name


def _tap(striker: Striker) -> Callable[[Any], None]:
    place = striker.place

    def tap(message: Any) -> None:
        is_reply = bool(message.metadata.reply_to_message_id)
        stage = {value: key for key, value in wire.STAGES.items()}.get(
            message.metadata.message_type, message.metadata.message_type
        )
        if is_reply == (place.when == "reply") and striker.is_now(stage):
            die()

    return tap


def _child(config: str, run_dir: str, place: Place, is_resumed: bool) -> None:
    taps = arm(place)
    simulate(config_from_json(config), Path(run_dir), taps=taps, is_resumed=is_resumed)


children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(["tests.warm"])


def run_until_killed(
    config: Config, run_dir: Path, place: Place, *, is_resumed: bool = False
) -> None:
    """Run, or resume, in a child that dies at `place`; fails if it did not."""
    if not is_resumed:
        run_dir.mkdir()
    arguments = (config.canonical_json(), str(run_dir), place, is_resumed)
    process = children.Process(target=_child, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"{place}: exit code {process.exitcode}"
