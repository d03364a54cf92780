"""Make a folder: of authority and server, of a server alone, of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedattn.cli_federation.terminal import (
    ApprovalFile,
    Days,
    Force,
    Host,
    InvitationDir,
    LinkPort,
    Port,
    ServerDir,
    digits,
    now,
    plain,
    say,
    show_folder,
    show_request,
)
from fedattn.errors import RunError


def init(
    root: Annotated[Path, typer.Argument(help="Where to make it.", show_default=False)],
    host: Host = None,
    name: Annotated[str, typer.Option(help="What the federation is called.")] = "federation",
    authority_only: Annotated[
        bool, typer.Option("--authority-only", help="The server is another party's.")
    ] = False,
    held_by: Annotated[
        str | None, typer.Option(help="Who holds the authority; reports say so.")
    ] = None,
    port: Port = 8443,
    superlink_port: LinkPort = 9092,
    valid_days: Days = None,
    force: Force = False,
) -> None:
    """Found a federation: its authority, an invitation, and the server unless --authority-only."""
    from fedattn.federation.authority import AUTHORITY_DAYS, found
    from fedattn.federation.server import found_with_server

    at, days = now(), valid_days or AUTHORITY_DAYS
    with plain():
        if authority_only:
            if host is not None or held_by is None:
                raise RunError(
                    "--authority-only: give --held-by NAME (who you are; reports say so) and no "
                    "--host, which the server's party gives"
                )
            if held_by == "server":
                raise RunError("--held-by server: is what a federation of one party says")
            folder = found(root, name, held_by=held_by, at=at, valid_days=days, force=force)
            show_folder(folder, at)
            say(
                f"1. bring {root / 'invitation'} to the server's machine, and there run",
                f"   fedattn federation server DIR --host NAME --invitation {root / 'invitation'}",
                f"2. fedattn federation approve {folder} request.json",
            )
            return
        if host is None:
            raise RunError("--host: give the name or address at which devices reach the server")
        if held_by is not None:
            raise RunError("--held-by: the server holds it, unless --authority-only")
        server = found_with_server(
            root, host, name=name, port=port, superlink_port=superlink_port, at=at,
            valid_days=days, force=force
        )  # fmt: skip
    show_folder(server, at)
    say(
        "one party holds authority and server: the report of every run says so.",
        f"1. copy {root / 'invitation'} to each device; there: fedattn federation join",
        f"2. fedattn federation approve {root / 'authority'} request.json",
        f"3. fedattn federation admit {server} NAME.json",
        f"4. {server / 'start.sh'}",
    )


def server(
    folder: ServerDir,
    host: Host = None,
    invitation: InvitationDir = None,
    approval: ApprovalFile = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Ask for a new TLS certificate over the same keys.")
    ] = False,
    port: Port = 8443,
    superlink_port: LinkPort = 9092,
    force: Force = False,
) -> None:
    """Make the server's folder and a request; or --approval: install what came back."""
    from fedattn.federation.server import install_server, make_server, renew_server

    at = now()
    with plain():
        if approval is not None:
            install_server(folder, approval, at=at)
            show_folder(folder, at)
            return
        if renew:
            request = renew_server(folder, at=at)
        elif host is not None and invitation is not None:
            request = make_server(
                folder, invitation, host, port=port, superlink_port=superlink_port, at=at,
                force=force
            )  # fmt: skip
        else:
            raise RunError("give --host NAME and --invitation DIR, or --approval FILE, or --renew")
    show_request(request)
    say(
        f"1. send {request} to the authority, and read it the server key by another channel",
        f"2. fedattn federation server {folder} --approval HOST.json",
    )


def join(
    folder: Annotated[Path, typer.Argument(help="The device's folder.", show_default=False)],
    invitation: InvitationDir = None,
    name: Annotated[str | None, typer.Option(help="What the device is called.")] = None,
    data: Annotated[Path | None, typer.Option(help="Its conversations (JSONL).")] = None,
    authority: Annotated[
        str | None, typer.Option(help="The authority's fingerprint, if you know it.")
    ] = None,
    approval: ApprovalFile = None,
    force: Force = False,
) -> None:
    """On a device: make its keys and a request; or --approval: install what came back."""
    from fedattn.federation import device

    at = now()
    with plain():
        if approval is not None:
            device.install(folder, approval, at=at, force=force)
            show_folder(folder, at)
            say(f"start it: {folder / 'start.sh'}")
            return
        if invitation is None or name is None or data is None:
            raise RunError("give --invitation DIR, --name NAME and --data FILE, or --approval FILE")
        # what this fedattn runs, and nothing else that a server sends (heavy: imported last)
        from fedattn.flower.bundle import bundle_sha256
        from fedattn.policy import default_policy_yaml

        policy = default_policy_yaml(data.resolve(), [bundle_sha256()])
        pinned = None if authority is None else digits(authority)
        request = device.join(
            folder, invitation, name, policy=policy, data=data, at=at, authority=pinned,
            force=force
        )  # fmt: skip
    show_request(request)
    say(
        f"1. read {folder / 'policy.yaml'}: what this device will agree to",
        f"2. send {request} to the authority, and read it the identity by another channel",
        f"3. fedattn federation join {folder} --approval {name}.json",
    )
