"""What is in a folder, for a person: names, fingerprints, how long things hold; never a secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fedattn.certificates import node_key_sha256, read_member, read_server, valid_until
from fedattn.errors import ProtocolError, RunError
from fedattn.federation.authority import authority_fingerprint, revocations
from fedattn.federation.device import own_name
from fedattn.federation.documents import read_approval, read_federation, read_settings
from fedattn.federation.folders import (
    ADMITTED,
    AUTHORITY,
    CERTIFICATE,
    IDENTITY,
    ISSUED,
    LEDGER_KEY,
    NODE_KEY_PUBLIC,
    POLICY,
    SERVER_KEY,
    TLS,
    about,
    kind_of,
    read,
    require_kind,
)
from fedattn.signing import SigningKey, fingerprint

SOON_DAYS = 30


@dataclass(frozen=True)
class Fact:
    """One line: `state` is "" | "ok" | "soon" | "bad"."""

    label: str
    value: str
    state: str = ""


@dataclass(frozen=True)
class MemberLine:
    """A member as its approval says: `status` is "valid" | "expired" | "revoked" | "foreign"."""

    name: str
    identity: str
    node_key: str
    until: str
    status: str


@dataclass(frozen=True)
class Contents:
    """A folder: whose it is, what is in it, and the members that it lists (None: lists none)."""

    kind: str
    folder: Path
    facts: list[Fact]
    members: list[MemberLine] | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """One object, for scripts."""
        members = None if self.members is None else [vars(member) for member in self.members]
        facts = {fact.label: fact.value for fact in self.facts}
        return {"kind": self.kind, "folder": str(self.folder), "facts": facts, "members": members}


def contents(folder: Path, *, at: datetime) -> Contents:
    """What is in the folder at time `at`; RunError if a secret in it is readable by others."""
    kind = kind_of(folder)
    require_kind(folder, kind)
    if kind == "authority":
        return Contents(kind, folder, _invited(folder, at), _members(folder / ISSUED, folder, at))
    if kind == "invitation":
        return Contents(kind, folder, _invited(folder, at))
    if kind == "server":
        return Contents(kind, folder, _server(folder, at), _members(folder / ADMITTED, folder, at))
    return Contents(kind, folder, _device(folder, at))


def require_ready(folder: Path, *, at: datetime) -> str:
    """The kind of a server's or device's folder that can start now.

    RunError naming what is missing, expired, revoked, foreign, or readable by others. A list of
    revoked certificates that has ended does not count here: a device gets the next one from the
    server, and no run enrols anybody without.
    """
    kind = kind_of(folder)
    if kind not in ("server", "device"):
        raise RunError(f"{folder}: is the folder of the {kind}; a server's or a device's starts")
    require_kind(folder, kind)
    revoked, authority = revocations(folder, at=None).serials, read(folder / AUTHORITY)
    path = folder / (TLS if kind == "server" else CERTIFICATE)
    if not path.exists():
        command = "server" if kind == "server" else "join"
        raise RunError(
            f"{path}: missing; send request.json to the authority, then install what comes back: "
            f"fedattn federation {command} {folder} --approval FILE"
        )
    with about(path):
        if kind == "server":
            host = read_settings(folder).host
            read_server(read(path), authority, host, at=at, revoked=revoked)
        else:
            read_member(read(path), authority, at=at, revoked=revoked)
    return kind


def _invited(folder: Path, at: datetime) -> list[Fact]:
    federation = read_federation(folder)
    where = f"{federation.host}:{federation.port}" if federation.host else "none approved yet"
    return [
        Fact("federation", federation.name),
        Fact("server", where, "" if federation.host else "soon"),
        Fact("server key", federation.server_key or "-"),
        *_authority(folder, federation.authority_held_by, at),
    ]


def _server(folder: Path, at: datetime) -> list[Fact]:
    settings = read_settings(folder)
    revoked = _revoked(folder, at)

    def verify(pem: bytes, authority: bytes) -> None:
        read_server(pem, authority, settings.host, at=at, revoked=revoked)

    return [
        Fact("federation", settings.name),
        Fact("address", f"{settings.host}:{settings.port}"),
        Fact("SuperLink", f"127.0.0.1:{settings.superlink_port}"),
        Fact("server key", fingerprint(SigningKey.load(folder / SERVER_KEY).public_bytes)),
        _certificate("TLS certificate", folder / TLS, folder, at, verify),
        *_authority(folder, settings.authority_held_by, at),
    ]


def _device(folder: Path, at: datetime) -> list[Fact]:
    federation = read_federation(folder)
    revoked = _revoked(folder, at)

    def verify(pem: bytes, authority: bytes) -> None:
        read_member(pem, authority, at=at, revoked=revoked)

    return [
        Fact("device", own_name(folder)),
        Fact("federation", federation.name),
        Fact("server", f"{federation.host}:{federation.port}"),
        Fact("server key", federation.server_key or "-"),
        Fact("identity", fingerprint(SigningKey.load(folder / IDENTITY).public_bytes)),
        Fact("node key", node_key_sha256(read(folder / NODE_KEY_PUBLIC))),
        Fact("ledger key", fingerprint(SigningKey.load(folder / LEDGER_KEY).public_bytes)),
        _certificate("certificate", folder / CERTIFICATE, folder, at, verify),
        Fact("policy", str(folder / POLICY)),
        *_authority(folder, federation.authority_held_by, at),
    ]


def _authority(folder: Path, held_by: str, at: datetime) -> list[Fact]:
    pem = read(folder / AUTHORITY)
    with about(folder / AUTHORITY):
        until = valid_until(pem)
    return [
        Fact("authority", authority_fingerprint(pem)),
        Fact("held by", held_by, "soon" if held_by == "server" else ""),
        Fact("authority until", *_until(until, at)),
        _list(folder, at),
    ]


def _list(folder: Path, at: datetime) -> Fact:
    try:
        found = revocations(folder, at=None)
    except RunError as error:
        return Fact("revoked", str(error), "bad")
    text, state = _until(found.until, at)
    return Fact("revoked", f"{len(found.serials)} in list {found.number}, until {text}", state)


def _revoked(folder: Path, at: datetime) -> frozenset[int]:
    try:
        return revocations(folder, at=None).serials
    except RunError:
        return frozenset()  # `_list` says so


def _certificate(label: str, path: Path, folder: Path, at: datetime, verify: Any) -> Fact:
    if not path.exists():
        return Fact(label, "none yet: send request.json to the authority", "soon")
    try:
        verify(read(path), read(folder / AUTHORITY))
    except ProtocolError as error:
        return Fact(label, str(error), "bad")
    text, state = _until(valid_until(read(path)), at)
    return Fact(label, f"until {text}", state)


def _until(until: datetime, at: datetime) -> tuple[str, str]:
    days = (until - at).days
    if until < at:
        return f"{until:%Y-%m-%d %H:%M} UTC (ended)", "bad"
    return f"{until:%Y-%m-%d} ({days} days)", "soon" if days < SOON_DAYS else "ok"


def _members(approvals: Path, folder: Path, at: datetime) -> list[MemberLine]:
    authority, revoked = read(folder / AUTHORITY), _revoked(folder, at)
    lines = []
    for path in sorted(approvals.glob("*.json")):
        approval = read_approval(path)
        pem = approval.certificate.encode()
        status, name, identity, node_key, until = "valid", approval.name, "-", "-", "-"
        try:
            ends = valid_until(pem)
            member = read_member(pem, authority, at=min(ends, at))
            identity, node_key = fingerprint(member.public_key), member.node_key_sha256 or "-"
            until = f"{ends:%Y-%m-%d}"
            status = "revoked" if member.serial in revoked else "expired" if ends < at else "valid"
        except ProtocolError as error:
            status = error.check.removeprefix("certificate.")
        lines.append(MemberLine(name, identity, node_key, until, status))
    return lines
