"""The ServerApp: one whole run, named by `run_config`, whose keys are flat texts.

config-json        the canonical config
run-dir            where ledger, checkpoints, model and report go; made if it is missing
server-key         PEM file of the key that signs ledger and report
authority          PEM file of the certificate of the CA that devices pinned
authority-held-by  who holds that CA's key: "server", "simulation", or another party's name
nodes              JSON file: Flower node id -> hash of its registered key; may be empty
revoked            PEM file of the authority's revocation list; may be empty
resume             "yes": go on with the run in `run-dir`; empty: start one there
created-by         what started the run
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedattn.config import config_from_json
from fedattn.errors import RunError
from fedattn.flower.observer import Observer, SilentObserver
from fedattn.flower.progress_file import FileObserver
from fedattn.flower.record import Terms
from fedattn.flower.training import COUNTERS_FILE, Training
from fedattn.signing import SigningKey

app = ServerApp()
DEPLOYMENT = "deployment"


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume a whole training; the results are in the run directory."""
    given = {key: str(value) for key, value in context.run_config.items()}
    run_dir = _run_dir(Path(_text(given, "run-dir")))
    with ExitStack() as closed:
        observer: Observer = getattr(grid, "observer", SilentObserver())
        if given.get("created-by") == DEPLOYMENT:
            # a SuperLink's ServerApp is alone in its process: who watches reads a file
            observer = closed.enter_context(FileObserver(run_dir))
            closed.enter_context(_alone(Path(_text(given, "server-key")).parent))
        Training(
            grid,
            config_from_json(_text(given, "config-json")),
            run_dir,
            SigningKey.load(Path(_text(given, "server-key"))),
            _read(Path(_text(given, "authority"))),
            observer,
            _terms(given),
        ).run()


def _terms(given: Mapping[str, str]) -> Terms:
    nodes, revoked = given.get("nodes", ""), given.get("revoked", "")
    resume = given.get("resume", "")
    if resume not in ("", "yes"):
        raise RunError(f"resume: {resume!r}, must be empty or yes")
    return Terms(
        authority_held_by=_text(given, "authority-held-by"),
        created_by=given.get("created-by", "") or "flower",
        nodes=_nodes(Path(nodes)) if nodes else None,
        revoked=_revoked(Path(revoked)) if revoked else b"",
        is_resumed=resume == "yes",
        counters=_lasting_counters(given),
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time: devices count their rounds, and two at once refuse each other's counts."""
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another run of this server is under way; wait") from None
        yield


def _lasting_counters(given: Mapping[str, str]) -> Path | None:
    """A deployed server remembers its devices beyond one run, beside its key."""
    if given.get("created-by") != DEPLOYMENT:
        return None
    return Path(_text(given, "server-key")).parent / COUNTERS_FILE


def _text(given: Mapping[str, str], key: str) -> str:
    if not given.get(key):
        raise RunError(f"run config: {key} is missing; start runs with `fedattn`, which sets it")
    return given[key]


def _revoked(path: Path) -> bytes:
    held = _read(path)
    if not held:  # cut short: who was revoked is not known, which is not nobody
        raise RunError(f"{path}: is empty; bring the authority's list of revoked certificates")
    return held


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None


def _nodes(path: Path) -> dict[int, str]:
    try:
        return {int(node): str(key) for node, key in json.loads(_read(path)).items()}
    except (ValueError, AttributeError):
        raise RunError(
            f"{path}: must map Flower node ids to SHA-256 hashes of their keys"
        ) from None


def _run_dir(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror}); nothing was sent") from None
    return path
