"""A device's side: its keys and its request, and what the authority made of it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from fedattn.certificates import (
    make_request,
    node_key_sha256,
    read_member,
    read_request,
    sign_request,
    valid_until,
)
from fedattn.errors import ProtocolError, RunError
from fedattn.federation.authority import authority_fingerprint, revocations
from fedattn.federation.documents import (
    MemberRequest,
    as_json,
    read_any_request,
    read_approval,
)
from fedattn.federation.folders import (
    AUTHORITY,
    CERTIFICATE,
    FEDERATION,
    IDENTITY,
    LEDGER_KEY,
    NODE_KEY,
    NODE_KEY_PUBLIC,
    POLICY,
    README,
    REQUEST,
    REVOKED,
    START,
    SUPEREXEC_SECRET,
    about,
    make_folder,
    make_way,
    read,
    require_kind,
    set_aside,
    template,
    write_new,
    write_private,
)
from fedattn.federation.keys import load_node_key, new_node_key, openssh
from fedattn.federation.server import read_invitation, require_bound
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey, fingerprint

_KEYS = (IDENTITY, NODE_KEY, LEDGER_KEY, SUPEREXEC_SECRET)
_FILES = (
    *(*_KEYS, NODE_KEY_PUBLIC, REQUEST, AUTHORITY, REVOKED, FEDERATION, POLICY, START, README),
    # what another authority vouched for
    *(CERTIFICATE, "members.pem"),
)


def join(
    folder: Path, invitation: Path, name: str, *, policy: str, data: Path, at: datetime,
    authority: str | None = None, force: bool = False
) -> Path:  # fmt: skip
    """Make the device's keys here and its request; the request's path.

    `policy` is the text of policy.yaml. The authority in the invitation is pinned; RunError if
    its fingerprint is not `authority`, where that is given.
    """
    federation, certificate, revoked = read_invitation(invitation, at=at)
    mark = authority_fingerprint(certificate)
    if authority is not None and authority.lower() != mark:
        raise RunError(f"{invitation}: its authority is {mark}, not the one that was expected")
    if federation.host is None or federation.server_key is None:
        raise RunError(
            f"{invitation}: names no server yet; the authority approves the server's request "
            "first, then hands out its invitation"
        )
    try:
        make_request(SigningKey(bytes(32)), name)  # the name alone is of interest
    except ProtocolError as error:
        raise RunError(f"--name {name}: {error}") from None
    if not data.is_file():
        raise RunError(f"--data {data}: no such file; name this device's conversations (JSONL)")
    make_way(folder, _FILES, force=force, at=at)
    make_folder(folder, private=True)
    identity = SigningKey.generate(Randomness.from_os())
    identity.save(folder / IDENTITY)
    SigningKey.generate(Randomness.from_os()).save(folder / LEDGER_KEY)
    node_key = new_node_key(folder / NODE_KEY)
    public = openssh(node_key.public_key())
    write_new(folder / NODE_KEY_PUBLIC, public + b"\n")
    write_private(folder / SUPEREXEC_SECRET, Randomness.from_os().bytes(32))
    write_new(folder / AUTHORITY, certificate)
    write_new(folder / REVOKED, revoked)
    write_new(folder / FEDERATION, read(invitation / FEDERATION))
    write_new(folder / POLICY, policy.encode())
    write_new(folder / START, template("start.sh"), mode=0o755)
    words = {"name": name, "federation": federation.name, "host": federation.host}
    text = template("device.md", **words, fingerprint=fingerprint(identity.public_bytes))
    write_new(folder / README, text)
    pem = make_request(identity, name, node_key_sha256=node_key_sha256(public))
    request = MemberRequest(
        request=pem.decode(),
        node_key=public.decode(),
        node_key_signature=sign_request(node_key, pem).hex(),
    )
    write_new(folder / REQUEST, as_json(request))
    return folder / REQUEST


def install(folder: Path, path: Path, *, at: datetime, force: bool = False) -> None:
    """Keep the certificate of an approval, if it is for this device and of its authority.

    RunError naming the reason: foreign, expired, revoked, for another identity, node key or name,
    or (but with `force`) no later end than the valid one that is here.
    """
    require_kind(folder, "device")
    approval = read_approval(path)
    pem, authority = approval.certificate.encode(), read(folder / AUTHORITY)
    revoked = revocations(folder, at=at).serials
    with about(path):
        member = require_bound(read_member(pem, authority, at=at, revoked=revoked), approval)
        if member.public_key != SigningKey.load(folder / IDENTITY).public_bytes:
            raise ProtocolError("certificate.key", "is for another identity than this device's")
        own = openssh(load_node_key(folder / NODE_KEY).public_key())
        if member.node_key_sha256 != node_key_sha256(own):
            raise ProtocolError(
                "certificate.node_key", "is for another node key than this device's"
            )
        if member.name != own_name(folder):
            raise ProtocolError("certificate.name", f"is not for `{own_name(folder)}`")
    kept = folder / CERTIFICATE
    if kept.exists():
        if read(kept) == pem:
            return
        is_renewal = valid_until(read(kept)) < valid_until(pem)  # both are for this device's keys
        if not (is_renewal or force) and _is_good(read(kept), authority, at, revoked):
            raise RunError(f"{kept}: exists and is valid; --force puts the new one in its place")
        set_aside(kept, at=at)
    write_new(kept, pem)


def own_name(folder: Path) -> str:
    """The name under which this device asked to be a member."""
    request = read_any_request(folder / REQUEST)
    if not isinstance(request, MemberRequest):
        raise RunError(f"{folder / REQUEST}: is no device's request")
    return read_request(request.request.encode()).name


def _is_good(pem: bytes, authority: bytes, at: datetime, revoked: frozenset[int]) -> bool:
    try:
        read_member(pem, authority, at=at, revoked=revoked)
    except ProtocolError:
        return False
    return True
