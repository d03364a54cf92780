"""A run on a deployed federation: registers who was admitted, starts it, follows it to its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from fedattn.certificates import read_member
from fedattn.config import Config, load_config
from fedattn.errors import (
    EXIT_ABORTED,
    EXIT_BUDGET,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ConfigError,
    RunError,
)
from fedattn.federation import admitted
from fedattn.federation.folders import AUTHORITY, REVOKED, SERVER_KEY
from fedattn.flower.bundle import build_bundle
from fedattn.flower.deployment.control import Control, RunState, UnreachableError
from fedattn.flower.deployment.folders import ServerFolder, open_server
from fedattn.flower.deployment.nodes import NODES_FILE, register
from fedattn.flower.observer import Observer, SilentObserver
from fedattn.flower.progress_file import (
    STOP_FILE,
    Follower,
    seconds_per_round,
    seconds_per_trip,
    tell,
)
from fedattn.report import LEDGER_FILE, REPORT_FILE, Report, read_report
from fedattn.resumption import require_resumable
from fedattn.signing import SigningKey, fingerprint

_EXITS: Final = {
    "completed": EXIT_OK,
    "budget": EXIT_BUDGET,
    "interrupted": EXIT_INTERRUPTED,
    "aborted": EXIT_ABORTED,
}
_START_S: Final = 30.0
_ONLINE_S: Final = 60.0
_LOOK_S: Final = 0.5


class FailedRunError(RunError):
    """The ServerApp stopped by an error of its own; its exit code is that error's."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Deployed:
    """A finished run of a deployed federation."""

    run_dir: Path
    report: Report
    server_fingerprint: str
    wall_s: float
    rounds_s: list[float]  # per round
    trips_s: list[float]  # per stage of a round: one message to all devices, and their replies

    @property
    def exit_code(self) -> int:
        """What the command exits with, as `fedattn simulate`."""
        return _EXITS[self.report.outcome]


def run(
    server_dir: Path,
    config_path: Path,
    overrides: Sequence[str] = (),
    *,
    resume: Path | None = None,
    run_dir: Path | None = None,
    observer: Observer | None = None,
) -> Deployed:
    """Run a config on the devices that are connected to the server of `server_dir`.

    The SuperLink must be running (`start`). With `resume` a run that was killed goes on. The
    observer sees what the ServerApp sees; when it asks to stop, the run ends after the round under
    way. Raises FedattnError, with the exit code that the command ends with.
    """
    folder = open_server(server_dir)
    config = load_config(config_path, list(overrides))
    if config.faults:
        raise ConfigError("faults: are for simulations; a deployed federation has its own")
    if resume is not None:  # before anything is made or started
        require_resumable(resume / LEDGER_FILE, resume / REPORT_FILE)
    began = time.monotonic()
    with Control(folder) as control:
        control.wait(_START_S)
        watcher = observer if observer is not None else SilentObserver()
        for line in register(folder, control):
            watcher.note(line)
        if not admitted(folder.path, at=datetime.now(UTC)):
            raise RunError(
                f"{folder.path}: nobody may take part; let devices in by `fedattn federation admit`"
            )
        target = resume.resolve() if resume is not None else _new_run_dir(folder, config, run_dir)
        _wait_for_nodes(folder, control, watcher)
        follower = Follower(target)
        number = control.start_run(
            build_bundle(), _run_config(folder, config, target, is_resumed=resume is not None)
        )
        state = _follow(control, number, target, follower, watcher)
    failed = [entry for entry in follower.entries if entry["kind"] == "failed"]
    if failed:
        raise FailedRunError(failed[-1]["text"], failed[-1]["exit_code"])
    if state.sub_status != "completed":
        raise FailedRunError(
            f"the run ended as {state.sub_status}; {folder.path / 'logs' / 'superlink.log'} says "
            f"more. What was released is in {target}; go on by --resume {target}",
            EXIT_ABORTED,
        )
    mark = fingerprint(SigningKey.load(folder.path / SERVER_KEY).public_bytes)
    return Deployed(
        target,
        read_report(target),
        mark,
        time.monotonic() - began,
        seconds_per_round(follower.entries),
        seconds_per_trip(follower.entries),
    )


def _follow(
    control: Control, number: int, run_dir: Path, follower: Follower, observer: Observer
) -> RunState:
    """Watch the run to its end; a second Ctrl-C (KeyboardInterrupt) ends it at once."""
    unreachable = 0
    try:
        while True:
            for entry in follower.read():
                tell(observer, entry)
            if observer.stop_requested():
                (run_dir / STOP_FILE).touch()
            try:
                state = control.run(number)
                unreachable = 0
            except UnreachableError:
                # It may be restarting; the run itself does not survive that, and says so then.
                unreachable += 1
                if unreachable * _LOOK_S > _START_S:
                    raise
                time.sleep(_LOOK_S)
                continue
            if state.is_finished:
                for entry in follower.read():
                    tell(observer, entry)
                return state
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        control.stop_run(number)
        raise


def _wait_for_nodes(folder: ServerFolder, control: Control, observer: Observer) -> None:
    """Give the admitted devices a minute to connect; who is late may join a later run."""
    expected = len(admitted(folder.path, at=datetime.now(UTC)))
    deadline = time.monotonic() + _ONLINE_S
    while (online := control.online()) < expected:
        if time.monotonic() > deadline:
            observer.note(f"{online} of {expected} admitted devices are connected; starting")
            return
        time.sleep(_LOOK_S)


def _new_run_dir(folder: ServerFolder, config: Config, wanted: Path | None) -> Path:
    """Make the run directory with its config.yaml and the roster of admitted identities."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = (wanted or folder.path / "runs" / f"{config.name}-{stamp}").resolve()
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror}); choose another --out") from None
    (path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (path / "roster.txt").write_text(
        "# identity public keys of the devices; an auditor pins a copy obtained elsewhere\n"
        + "".join(f"{key.hex()}\n" for key in _identities(folder))
    )
    return path


def _identities(folder: ServerFolder) -> list[bytes]:
    now, authority = datetime.now(UTC), (folder.path / AUTHORITY).read_bytes()
    certificates = [each.certificate.encode() for each in admitted(folder.path, at=now)]
    return [read_member(each, authority, at=now).public_key for each in certificates]


def _run_config(
    folder: ServerFolder, config: Config, run_dir: Path, *, is_resumed: bool
) -> dict[str, Any]:
    return {
        "config-json": config.canonical_json(),
        "run-dir": str(run_dir),
        "server-key": str(folder.path / SERVER_KEY),
        "authority": str(folder.path / AUTHORITY),
        "nodes": str(folder.path / NODES_FILE),
        "revoked": str(folder.path / REVOKED),
        "resume": "yes" if is_resumed else "",
        "authority-held-by": folder.authority_held_by,
        "created-by": "deployment",
    }
