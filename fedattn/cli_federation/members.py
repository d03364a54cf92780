"""Who is a member: approve, admit, revoke, and a look at any folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedattn.cli_federation.terminal import (
    AsJson,
    AuthorityDir,
    Days,
    Folder,
    Force,
    ServerDir,
    ask,
    digits,
    now,
    plain,
    say,
    show_folder,
)
from fedattn.errors import RunError


def approve(
    folder: AuthorityDir,
    request: Annotated[Path, typer.Argument(help="A request.json.", show_default=False)],
    fingerprint: Annotated[
        str | None, typer.Option(help="The one that the owner read to you; approve if it is so.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: it was compared before.")] = (
        False
    ),
    valid_days: Days = None,
) -> None:
    """Certify a device or the server, after a look at who asks; the same request again renews."""
    from rich.console import Console

    from fedattn.federation import authority
    from fedattn.federation.documents import MemberRequest, read_any_request
    from fedattn.federation.table import request_table

    at = now()
    with plain():
        asked = read_any_request(request)
        facts = authority.describe(asked)
        Console().print(request_table(facts))
        known = dict(facts)
        own = known["identity" if isinstance(asked, MemberRequest) else "server key"]
        if fingerprint is not None and digits(fingerprint) != own:
            raise RunError(f"{request}: its fingerprint is not the one given; nothing is approved")
        if fingerprint is None and not yes:
            ask("Does the fingerprint agree with the one its owner read to you?", request)
        if isinstance(asked, MemberRequest):
            days = valid_days or authority.MEMBER_DAYS
            path = authority.approve(folder, asked, at=at, valid_days=days)
            say(
                f"approved: {path}",
                "1. send it back; there: fedattn federation join DIR --approval FILE",
                "2. on the server: fedattn federation admit DIR FILE",
            )
        else:
            days = valid_days or authority.SERVER_DAYS
            path = authority.approve_server(folder, asked, at=at, valid_days=days)
            say(
                f"approved: {path}",
                "1. send it back; there: fedattn federation server DIR --approval FILE",
                f"2. hand {folder.parent / 'invitation'} to the devices",
            )


def admit(
    folder: ServerDir,
    approvals: Annotated[
        list[Path], typer.Argument(help="What the authority approved.", show_default=False)
    ],
    force: Force = False,
) -> None:
    """Let devices connect to the server, if the authority approved them."""
    from fedattn.federation.server import admit as take

    at = now()
    with plain():
        for path in approvals:
            say(f"admitted: {take(folder, path, at=at, force=force).name}")


def revoke(
    folder: Folder,
    name: Annotated[
        str | None,
        typer.Argument(help="Whose certificates, for good; without it the list is renewed."),
    ] = None,
    new_list: Annotated[
        Path | None, typer.Option("--list", help="Server or device: take over this newer list.")
    ] = None,
    valid_days: Days = None,
) -> None:
    """The authority takes all certificates of NAME back; --list: a server or device learns of it.

    Never to renew a certificate (`approve` does): keys that were taken back do not return.
    """
    from fedattn.federation import authority
    from fedattn.federation.server import update_revocations

    at = now()
    with plain():
        if new_list is not None:
            if name is not None:
                raise RunError("give a NAME or --list, not both")
            say(f"list {update_revocations(folder, new_list, at=at)} holds here now")
            return
        days = valid_days or authority.REVOCATION_DAYS
        made = authority.revoke(folder, name, at=at, valid_days=days)
    say(
        f"list {made.number}: {len(made.serials)} revoked, until {made.until:%Y-%m-%d}",
        f"bring {folder / 'revoked.crl'} to the server, and there run",
        "  fedattn federation revoke SERVER_DIR --list revoked.crl",
    )


def show(
    folder: Folder,
    as_json: AsJson = False,
) -> None:
    """What is in a folder: names, fingerprints, how long things hold. Never a secret."""
    from fedattn.federation.contents import contents

    at = now()
    with plain():
        if as_json:
            typer.echo(json.dumps(contents(folder, at=at).to_json()))
        else:
            show_folder(folder, at)
