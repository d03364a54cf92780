"""A whole federation on one machine: run directory, keys, devices, embedded grid, result."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import yaml

from fedattn.config import ROWS, Config, load_config
from fedattn.data.clean import require_cleaning
from fedattn.errors import EXIT_ABORTED, EXIT_BUDGET, EXIT_INTERRUPTED, EXIT_OK, RunError
from fedattn.randomness import Randomness
from fedattn.report import LEDGER_FILE, REPORT_FILE, Report, read_report
from fedattn.resumption import require_resumable, require_same_config
from fedattn.signing import SigningKey, fingerprint

if TYPE_CHECKING:
    from fedattn.device import Device

Engine: TypeAlias = Literal["embedded", "ray"]
CONFIG_FILE = "config.yaml"
_CLIENT_APP = "fedattn.flower.client_app:app"
_FIRST_NODE = 100
_EXITS = {
    "completed": EXIT_OK,
    "budget": EXIT_BUDGET,
    "interrupted": EXIT_INTERRUPTED,
    "aborted": EXIT_ABORTED,
}


@dataclass(frozen=True)
class Simulation:
    """A finished run: where it is, what its report says, how long it took."""

    run_dir: Path
    report: Report
    server_fingerprint: str
    wall_s: float

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return _EXITS[self.report.outcome]

    def to_json(self) -> dict[str, Any]:
        """The one object that `fedattn simulate --json` prints."""
        report = self.report.model_dump(mode="json")
        pretended = report["hypothetical"]
        return {
            "run_dir": str(self.run_dir),
            "outcome": self.report.outcome,
            "rounds": self.report.totals.rounds_released,
            "rounds_aborted": self.report.totals.rounds_aborted,
            "rounds_skipped": self.report.totals.rounds_skipped,
            "epsilon": report["totals"]["epsilon"],
            "epsilons": {row: report["totals"]["epsilons"][row] for row in ROWS},
            "hypothetical_epsilons": (
                None if pretended is None else {row: pretended["epsilons"][row] for row in ROWS}
            ),
            "budgets": self.report.totals.budgets,
            "delta": self.report.totals.delta,
            "bpb_before": self.report.quality.bpb_before,
            "bpb_after": self.report.quality.bpb_after,
            "wall_s": round(self.wall_s, 1),
            "server_key": self.server_fingerprint,
            "notes": self.report.notes,
        }


def new_run_dir(config: Config, out: Path | None) -> Path:
    """Make the run directory; RunError if it exists, so that no run is overwritten."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = out if out is not None else Path("runs") / f"{config.name}-{stamp}"
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise RunError(
            f"{path}: exists; choose another --out, a run is never overwritten"
        ) from None
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror}); choose another --out") from None
    return path


def server_key(config: Config, run_dir: Path) -> Path:
    """The path of the server's key: the config's own, or one made for this run."""
    if config.server_key is not None:
        return _key_path(config, run_dir)
    path = _key_path(config, run_dir)
    randomness = (
        Randomness.from_os()
        if config.seed is None
        else Randomness.seeded(config.seed, "server key")
    )
    SigningKey.generate(randomness).save(path)
    return path


def found_federation(devices: Sequence[Device], folder: Path) -> Path:
    """Make an authority in `folder`, have it certify every device, and let each pin it.

    Returns the path of its certificate, which an auditor may pin. The authority's key stays in
    `folder`: in a simulation one party plays everybody, and the report says so.
    """
    from fedattn.certificates import certify, make_authority, make_request

    at, seed = datetime.now(UTC), devices[0].policy.seed
    stream = Randomness.from_os() if seed is None else Randomness.seeded(seed, "authority")
    authority = make_authority(stream, "simulated-authority", at=at, valid_days=365)
    folder.mkdir(parents=True)
    authority.key.save(folder / "authority-key.pem")
    path = folder / "authority.pem"
    path.write_bytes(authority.certificate)
    for device in devices:
        name = f"client-{device.index + 1}"
        request = make_request(device.identity, name)
        certificate = certify(authority, request, name, stream, at=at, valid_days=365)
        device.join(certificate, authority.certificate)
    return path


def resumed_config(run_dir: Path, config: Path | None, overrides: Sequence[str]) -> Config:
    """The config of the run in `run_dir`, to go on with.

    `config`, or without one the run's own config.yaml, with `overrides`, must be what the run was
    opened with: RunError names the first key that differs, and what there is to resume, if nothing.
    """
    standing = require_resumable(run_dir / LEDGER_FILE, run_dir / REPORT_FILE)
    found = load_config(run_dir / CONFIG_FILE if config is None else config, overrides)
    require_same_config(found, standing.opened)
    return found


def require_engine(engine: Engine, config: Config) -> None:
    """RunError, or RefusalError("device"), with the remedy, if `config` cannot run on `engine`."""
    if engine == "embedded":
        from fedattn.placement import usable_device

        usable_device(config.train.device)
    else:
        if find_spec("ray") is None:
            raise RunError("engine ray: Ray is not installed; run `pip install 'fedattn[sim]'`")
        from fedattn.flower.ray_engine import require_runnable

        require_runnable(config)


def simulate(
    config: Config,
    run_dir: Path,
    *,
    observer: Any = None,
    taps: Sequence[Any] = (),
    engine: Engine = "embedded",
    is_resumed: bool = False,
) -> Simulation:
    """Run `config` on this machine, or go on with the run in `run_dir`, and return its report.

    The run directory holds config.yaml, ledger.jsonl, model.safetensors, report.json, .sig and
    .html, roster.txt, server.pem unless the config names a key, and each device's folder. `taps`
    see the messages of the embedded engine.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    require_engine(engine, config)
    require_cleaning(config.data.clean)
    began = time.monotonic()
    if not is_resumed:
        try:
            _set_up(config, run_dir)
        except OSError as error:
            raise RunError(
                f"{run_dir}: cannot be written ({error.strerror}); nothing was sent"
            ) from None
    key_path = _key_path(config, run_dir)
    run_config: dict[str, Any] = {
        "config-json": config.canonical_json(),
        "run-dir": str(run_dir),
        "server-key": str(key_path),
        "authority": str(run_dir / "authority" / "authority.pem"),
        "authority-held-by": "simulation",
        "nodes": "",
        "revoked": "",
        "resume": "yes" if is_resumed else "",
        "created-by": "simulate",
    }
    from fedattn.kept_tokens import kept_tokens

    with kept_tokens(config, run_dir / "tokens"):
        if engine == "ray":
            from fedattn.flower.observer import SilentObserver
            from fedattn.flower.ray_engine import run as run_on_ray

            watching = SilentObserver() if observer is None else observer
            run_on_ray(config, run_dir, run_config, run_dir / "devices", watching)
        else:
            _embedded(config, run_dir, run_config, observer, taps)
    key = fingerprint(SigningKey.load(key_path).public_bytes)
    return Simulation(run_dir, read_report(run_dir), key, time.monotonic() - began)


def _set_up(config: Config, run_dir: Path) -> None:
    """Make keys, devices and their authority; nothing here contacts anyone."""
    from fedattn.device import Device
    from fedattn.flower.client_app import POLICY_FILE
    from fedattn.policy import Policy

    SigningKey.load(server_key(config, run_dir))
    (run_dir / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    policy, path = Policy.agreed(config), run_dir / "devices" / POLICY_FILE
    path.parent.mkdir()
    policy.save(path)
    devices = [Device(folder, policy, i) for i, folder in enumerate(_folders(config, run_dir))]
    found_federation(devices, run_dir / "authority")
    keys = [device.identity.public_bytes for device in devices]
    (run_dir / "roster.txt").write_text(
        "# identity public keys of the devices; an auditor pins a copy obtained elsewhere\n"
        + "".join(f"{key.hex()}\n" for key in keys)
    )


def _embedded(
    config: Config,
    run_dir: Path,
    run_config: dict[str, Any],
    observer: Any,
    taps: Sequence[Any],
) -> None:
    from flwr.app import Context, RecordDict

    from fedattn.flower.client_app import POLICY_FILE
    from fedattn.flower.embedded.contexts import LazyNodes
    from fedattn.flower.grid import EmbeddedGrid
    from fedattn.flower.server_app import app as server_app

    devices = run_dir / "devices"

    def node_config(node: int) -> dict[str, str | int]:
        place = node - _FIRST_NODE
        return {
            "device-dir": str(_folder(run_dir, place)),
            "policy": str(devices / POLICY_FILE),
            "partition-id": place,
        }

    with EmbeddedGrid(
        _CLIENT_APP,
        LazyNodes(range(_FIRST_NODE, _FIRST_NODE + config.data.clients), node_config),
        faults=config.faults,
        taps=taps,
        workers=_workers(config),
        threads=config.train.threads or 1,
    ) as grid:
        if observer is not None:
            grid.observer = observer  # type: ignore[attr-defined]
        server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), run_config))


def _workers(config: Config) -> int:
    """How many processes answer for the clients: no more than there are clients.

    `auto` is one for each core that this process may use; none where clients train on a GPU, which
    they would only share, each process with its own copy of the driver's memory.
    """
    if config.workers != "auto":
        return min(config.workers, config.data.clients)
    from fedattn.placement import usable_device

    if usable_device(config.train.device).type != "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, config.data.clients)


def _folder(run_dir: Path, place: int) -> Path:
    return run_dir / "devices" / f"client-{place + 1}"


def _folders(config: Config, run_dir: Path) -> list[Path]:
    return [_folder(run_dir, place) for place in range(config.data.clients)]


def _key_path(config: Config, run_dir: Path) -> Path:
    return run_dir / "server.pem" if config.server_key is None else Path(config.server_key)
