"""Commands that make, price and check a run: init, simulate, plan, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedattn.errors import EXIT_FINDING, EXIT_OK

if TYPE_CHECKING:
    from fedattn.plan import Plan
    from fedattn.simulate import Engine

ConfigPath = Annotated[
    Path, typer.Argument(help="A YAML config; see configs/.", show_default=False)
]
RunDir = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key: section.key=value. Repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def init(
    path: Annotated[Path, typer.Argument(help="The config to write.")] = Path("fedattn.yaml"),
    data: Annotated[str, typer.Option(help="Your conversations, one JSON object a line.")] = (
        "conversations.jsonl"
    ),
) -> None:
    """Write a commented config for your own conversations."""
    from importlib.resources import files

    from fedattn.errors import ConfigError

    template = (files("fedattn") / "assets" / "init.yaml").read_text("utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template.replace("{{data}}", json.dumps(data)))
    except FileExistsError:
        raise ConfigError(f"{path}: exists; choose another path") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    typer.echo(f"wrote {path}; look at your data with  fedattn data inspect {path}")


def simulate(
    config: Annotated[
        Path | None,
        typer.Argument(help="A YAML config; see configs/. Not needed with --resume."),
    ] = None,
    overrides: Sets = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to make; never overwritten.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this directory after a kill.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="embedded: this process; ray: Flower's Ray simulation.")
    ] = "embedded",
    track: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, wandb (offline) or wandb-online. Repeatable."),
    ] = None,
    track_dir: Annotated[
        Path | None, typer.Option(help="Where trackers write; without it, in the run directory.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and price, as `fedattn plan --no-probe`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train on one machine: all clients, secure aggregation, ledger, report.

    Ctrl-C once ends after the round under way and writes model and report; twice aborts at once
    with the ledger intact. A run that was killed goes on with  fedattn simulate --resume RUN_DIR
    """
    from fedattn.config import load_config
    from fedattn.errors import ConfigError

    if config is None and resume is None:
        raise typer.BadParameter("give a CONFIG, or --resume RUN_DIR")
    if resume is not None and (out is not None or dry_run):
        raise ConfigError("--resume goes on in its own directory; drop --out and --dry-run")
    chosen: Engine
    if engine == "embedded":
        chosen = "embedded"
    elif engine == "ray":
        chosen = "ray"
    else:
        raise ConfigError(f"--engine {engine}: must be embedded or ray")
    if dry_run and config is not None:
        from fedattn.plan import make_plan

        _show_plan(
            make_plan(load_config(config, overrides or []), is_probed=False), as_json=as_json
        )
        return
    from fedattn import progress
    from fedattn.simulate import new_run_dir, require_engine, resumed_config
    from fedattn.simulate import simulate as run
    from fedattn.tracking import require_trackers, tracking, tracking_folder

    require_trackers(track or ())

    if resume is not None:
        loaded, run_dir = resumed_config(resume, config, overrides or []), resume
        require_engine(chosen, loaded)
    else:
        assert config is not None
        loaded = load_config(config, overrides or [])
        require_engine(chosen, loaded)
        run_dir = new_run_dir(loaded, out)
    with (
        progress.Live(loaded) as shown,
        tracking(shown, track or (), tracking_folder(run_dir, track_dir), loaded) as observer,
    ):
        result = run(
            loaded, run_dir, observer=observer, engine=chosen, is_resumed=resume is not None
        )
        observer.finished(result.report)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        progress.print_result(result)
    raise typer.Exit(result.exit_code)


def plan(
    config: ConfigPath,
    overrides: Sets = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Find the least noise that costs at most this over all rounds."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Whom --epsilon is for: outsider, server, collusion or unmasked; "
            "without it, each that has a budget.",
        ),
    ] = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Measure nothing; predict neither time nor memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Price a config: epsilon per adversary, sizes, margins, time. Trains nothing, reads no text.

    What the config promises and cannot hold is refused, with the remedy.
    """
    from fedattn.config import ROWS, load_config
    from fedattn.errors import ConfigError
    from fedattn.plan import make_plan

    row = next((each for each in ROWS if each == against), None)
    if against is not None and row is None:
        raise ConfigError(f"--against {against}: must be one of {', '.join(ROWS)}")
    loaded = load_config(config, overrides or [])
    made = make_plan(loaded, epsilon=epsilon, against=row, is_probed=not no_probe)
    _show_plan(made, as_json=as_json)


def audit(
    run: RunDir,
    server_key: Annotated[
        str | None, typer.Option(help="Pinned fingerprint of the server's key (64 hex digits).")
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="Pinned identity keys of the devices, one a line.")
    ] = None,
    authority: Annotated[
        Path | None, typer.Option(help="Pinned certificate of the federation's authority (PEM).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a run's ledger and report, recomputing every epsilon. Needs neither torch nor flwr."""
    from fedattn.audit import audit as check
    from fedattn.audit import audit_table

    result = check(run, server_key=server_key, roster=roster, authority=authority)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        from rich.console import Console

        Console().print(audit_table(result))
    raise typer.Exit(EXIT_OK if result.ok else EXIT_FINDING)


def _show_plan(made: Plan, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(made.to_json()))
        return
    from rich.console import Console

    from fedattn.plan.table import plan_table

    Console().print(plan_table(made))
