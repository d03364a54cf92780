"""Start a folder's processes, and a run over the devices that are connected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedattn.cli_federation.terminal import AsJson, Folder, ServerDir, now, plain
from fedattn.errors import RunError


def start(
    folder: Folder,
    only: Annotated[
        str | None, typer.Option(help="One process: superlink, front, supernode or runner.")
    ] = None,
) -> None:
    """Start what the folder is for: the server's processes, or a device's."""
    from fedattn.federation.contents import require_ready

    with plain():
        require_ready(folder, at=now())
    from fedattn.flower import deployment

    raise typer.Exit(deployment.start(folder, only))


def run(
    folder: ServerDir,
    config: Annotated[Path, typer.Argument(help="A YAML config.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override one key: section.key=value.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this directory.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to make, else one in runs/ of the folder.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, wandb (offline) or wandb-online. Repeatable."),
    ] = None,
    track_dir: Annotated[
        Path | None, typer.Option(help="Where trackers write, else tracking/ of the folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train with the devices that are connected; exit codes as `fedattn simulate`."""
    from fedattn.federation.authority import revocations
    from fedattn.federation.contents import require_ready

    with plain():
        if require_ready(folder, at=now()) != "server":
            raise RunError(f"{folder}: is a device's folder; runs are the server's to start")
        revocations(folder, at=now())  # an ended list would stop the run at its enrolment
    from fedattn import progress
    from fedattn.config import load_config
    from fedattn.flower import deployment
    from fedattn.simulate import Simulation
    from fedattn.tracking import require_trackers, tracking

    require_trackers(track or ())
    sets = overrides or []
    loaded = load_config(config, sets)
    target = (track_dir or folder / "tracking") / f"{loaded.name}-{now():%Y%m%d-%H%M%S}"
    with (
        progress.Live(loaded) as shown,
        tracking(shown, track or (), target, loaded) as observer,
    ):
        done = deployment.run(folder, config, sets, resume=resume, run_dir=out, observer=observer)
        observer.finished(done.report)
    result = Simulation(done.run_dir, done.report, done.server_fingerprint, done.wall_s)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        progress.print_result(result)
    raise typer.Exit(result.exit_code)
