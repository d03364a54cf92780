"""The command line: every command is registered here and imports what it needs when it runs.

cli_run.py         init, simulate, plan, audit
cli_model.py       what is done with a run's model
cli_data.py        conversations: inspect, clean
cli_federation/    keys, approvals, start and run of a deployment

Exit codes: 0 ok, 1 finding, 2 bad input, 3 budget stop, 4 aborted, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedattn import cli_model, cli_run
from fedattn.cli_attention import attention
from fedattn.cli_data import data_app
from fedattn.cli_federation import federation_app
from fedattn.cli_pretrain import pretrain
from fedattn.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, FedattnError
from fedattn.printable import printable

# Locals in a traceback could hold private text.
app = typer.Typer(
    help="Federated, differentially private fine-tuning of an attention-based dialogue generator.",
    epilog="Exit codes: 0 ok, 1 finding, 2 bad input, 3 budget stop, 4 aborted, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
keys_app = typer.Typer(help="Make and show the server's signing key.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(keys_app, name="keys")
app.add_typer(federation_app, name="federation")
for command in (
    cli_run.init,
    cli_run.simulate,
    cli_run.plan,
    cli_run.audit,
    cli_model.chat,
    cli_model.generate,
    cli_model.export,
    cli_model.compress,
    attention,
    pretrain,
):
    app.command()(command)


@keys_app.command("new")
def keys_new(path: Annotated[Path, typer.Argument(help="PEM file to write.")]) -> None:
    """Make a server key that its owner alone can read, and print the fingerprint to pin."""
    from fedattn.randomness import Randomness
    from fedattn.signing import SigningKey, fingerprint

    key = SigningKey.generate(Randomness.from_os())
    key.save(path)
    typer.echo(fingerprint(key.public_bytes))


@keys_app.command("show")
def keys_show(path: Annotated[Path, typer.Argument(help="PEM file of a key.")]) -> None:
    """Print a key's fingerprint: what auditors pin."""
    from fedattn.signing import SigningKey, fingerprint

    typer.echo(fingerprint(SigningKey.load(path).public_bytes))


def main() -> None:
    """Entry point: a FedattnError becomes its message on stderr and its exit code."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import click

    try:
        sys.exit(app(standalone_mode=False))
    except FedattnError as error:
        # a key or name that it quotes may come from a file of others; its lines are our own
        lines = map(printable, str(error).split("\n"))
        print(f"{type(error).__name__}: " + "\n".join(lines), file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
