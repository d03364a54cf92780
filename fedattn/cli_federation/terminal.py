"""What the commands share: arguments, the time, and how they speak to a person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedattn.errors import ProtocolError, RunError

Folder = Annotated[Path, typer.Argument(help="A party's folder.", show_default=False)]
AuthorityDir = Annotated[Path, typer.Argument(help="The authority's folder.", show_default=False)]
ServerDir = Annotated[Path, typer.Argument(help="The server's folder.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Rename what is in the way to NAME.old-TIME.")]
Host = Annotated[
    str | None, typer.Option(help="Name or address at which devices reach the server.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Of the TLS front.")]
LinkPort = Annotated[
    int, typer.Option("--superlink-port", min=1, max=65535, help="Of the SuperLink, on 127.0.0.1.")
]
Days = Annotated[int | None, typer.Option("--valid-days", min=1, help="How long it holds.")]
ApprovalFile = Annotated[
    Path | None, typer.Option("--approval", help="Install what the authority approved.")
]
InvitationDir = Annotated[
    Path | None, typer.Option("--invitation", help="The folder that the authority handed out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@contextmanager
def plain() -> Iterator[None]:
    """A document that fails a check is bad input here (exit code 2), not an aborted round."""
    try:
        yield
    except ProtocolError as error:
        raise RunError(str(error)) from None


def now() -> datetime:
    """The time by which documents are judged."""
    return datetime.now(UTC)


def digits(fingerprint: str) -> str:
    """A fingerprint as people type it: groups, colons, capitals."""
    return "".join(fingerprint.split()).replace(":", "").lower()


def ask(question: str, request: Path) -> None:
    """RunError unless a person says yes."""
    import click

    try:
        agreed = typer.confirm(question)
    except click.Abort:
        raise RunError(f"{request}: nobody answered; give --fingerprint or --yes") from None
    if not agreed:
        raise RunError(f"{request}: nothing is approved")


def say(*lines: str) -> None:
    """Lines on stdout."""
    for line in lines:
        typer.echo(line)


def show_folder(folder: Path, at: datetime) -> None:
    """What is in the folder."""
    from rich.console import Console

    from fedattn.federation.contents import contents
    from fedattn.federation.table import contents_table

    Console().print(contents_table(contents(folder, at=at)))


def show_request(request: Path) -> None:
    """What a request.json asks for."""
    from rich.console import Console

    from fedattn.federation.authority import describe
    from fedattn.federation.documents import read_any_request
    from fedattn.federation.table import request_table

    Console().print(request_table(describe(read_any_request(request))))
