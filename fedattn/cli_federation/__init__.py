"""`fedattn federation`: from nothing to a running federation, one folder for each party."""

from __future__ import annotations

import typer

from fedattn.cli_federation.found import init, join, server
from fedattn.cli_federation.members import admit, approve, revoke, show
from fedattn.cli_federation.running import run, start

federation_app = typer.Typer(
    help="Found a federation, join it, run it. Each party has one folder; keys never leave it.",
    no_args_is_help=True,
)
for command in (init, server, join, approve, admit, revoke, show, start, run):
    federation_app.command()(command)
