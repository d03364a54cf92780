"""The server's side: its folder and keys, the authority's approval of it, who is admitted."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from fedattn.certificates import (
    Member,
    later_revocations,
    make_server_request,
    node_key_sha256,
    read_member,
    read_server,
    require_authority,
    valid_until,
)
from fedattn.durable import write_durably
from fedattn.errors import ProtocolError, RefusalError
from fedattn.federation.authority import approve_server, found, revocations
from fedattn.federation.documents import (
    Approval,
    Federation,
    ServerRequest,
    ServerSettings,
    as_json,
    as_yaml,
    read_any_request,
    read_approval,
    read_federation,
    read_server_approval,
    read_settings,
    require_host,
    server_request,
)
from fedattn.federation.folders import (
    ADMITTED,
    AUTHORITY,
    INVITATION,
    README,
    REQUEST,
    REVOKED,
    SERVER,
    SERVER_KEY,
    START,
    TLS,
    TLS_KEY,
    about,
    make_folder,
    make_way,
    old_name,
    read,
    require_kind,
    set_aside,
    template,
    write_new,
)
from fedattn.federation.keys import load_tls_key, new_tls_key
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey, fingerprint

PORT: Final = 8443
SUPERLINK_PORT: Final = 9092
HELD_BY_SERVER: Final = "server"
_FILES: Final = (
    *(SERVER_KEY, TLS_KEY, TLS, AUTHORITY, REVOKED, SERVER, REQUEST, START, README, ADMITTED),
    # who was registered under an authority that is given up is a stranger
    *("nodes.json", "superlink.db"),
)


def found_with_server(
    root: Path, host: str, *, name: str, port: int, superlink_port: int, at: datetime,
    valid_days: int, force: bool = False
) -> Path:  # fmt: skip
    """One party plays authority and server: root/authority, root/server, root/invitation.

    By the same steps as two parties do it. Returns the server's folder.
    """
    require_host(host)
    folder = root / "server"
    make_way(folder, _FILES, force=force, at=at)
    authority = found(root, name, held_by=HELD_BY_SERVER, at=at, valid_days=valid_days, force=force)
    request = make_server(
        folder, root / INVITATION, host, port=port, superlink_port=superlink_port, at=at
    )
    asked = read_any_request(request)
    assert isinstance(asked, ServerRequest)
    install_server(folder, approve_server(authority, asked, at=at), at=at)
    return folder


def make_server(
    folder: Path, invitation: Path, host: str, *, port: int, superlink_port: int, at: datetime,
    force: bool = False
) -> Path:  # fmt: skip
    """Make the server's keys and folder; the path of its request to the authority."""
    require_host(host)
    federation, authority, revoked = read_invitation(invitation, at=at)
    make_way(folder, _FILES, force=force, at=at)
    make_folder(folder, private=True)
    make_folder(folder / ADMITTED, private=False)
    key = SigningKey.generate(Randomness.from_os())
    key.save(folder / SERVER_KEY)
    tls_key = new_tls_key(folder / TLS_KEY)
    write_new(folder / AUTHORITY, authority)
    write_new(folder / REVOKED, revoked)
    settings = ServerSettings(
        name=federation.name, host=host, port=port, superlink_port=superlink_port,
        authority_held_by=federation.authority_held_by
    )  # fmt: skip
    comment = "port: of the TLS front; superlink_port: on 127.0.0.1 alone. Devices know the host."
    write_new(folder / SERVER, as_yaml(settings, comment))
    write_new(folder / START, template("start.sh"), mode=0o755)
    mark = fingerprint(key.public_bytes)
    words = {"name": federation.name, "host": host, "fingerprint": mark}
    write_new(folder / README, template("server.md", **words))
    request = server_request(key, make_server_request(tls_key, host), port)
    write_new(folder / REQUEST, as_json(request))
    return folder / REQUEST


def renew_server(folder: Path, *, at: datetime) -> Path:
    """A new request over the keys that the folder has, before the TLS certificate ends."""
    require_kind(folder, "server")
    settings = read_settings(folder)
    pem = make_server_request(load_tls_key(folder / TLS_KEY), settings.host)
    key = SigningKey.load(folder / SERVER_KEY)
    make_way(folder, (REQUEST,), force=True, at=at)
    write_new(folder / REQUEST, as_json(server_request(key, pem, settings.port)))
    return folder / REQUEST


def install_server(folder: Path, approval: Path, *, at: datetime) -> None:
    """Keep the TLS certificate that the authority issued for this folder's key and host."""
    require_kind(folder, "server")
    certificate = read_server_approval(approval).certificate.encode()
    host, revoked = read_settings(folder).host, revocations(folder, at=at).serials
    with about(approval):
        authority = read(folder / AUTHORITY)
        server = read_server(certificate, authority, host, at=at, revoked=revoked)
        if server.public_key != load_tls_key(folder / TLS_KEY).public_key():
            raise ProtocolError("certificate.key", "is for another key than this server's")
    if (folder / TLS).exists():
        if read(folder / TLS) == certificate:
            return
        set_aside(folder / TLS, at=at)
    write_new(folder / TLS, certificate)


def admit(folder: Path, path: Path, *, at: datetime, force: bool = False) -> Approval:
    """Let a member's node register: keep its approval, verified, in admitted/.

    RefusalError("name_taken" | "node_key_taken") while another approval holds the name or the node
    key and is neither revoked nor expired, unless this one renews it; `force` lets another one
    take the name's place. The approval before it is kept as NAME.json.old-TIME.
    """
    require_kind(folder, "server")
    approval = read_approval(path)
    member = _verified(folder, approval, path, at)
    kept = folder / ADMITTED / f"{member.name}.json"
    for other in admitted(folder, at=at):
        if other == approval:
            return approval
        if other.node_key == approval.node_key and other.name != approval.name:
            raise RefusalError("node_key_taken", f"{path}: `{other.name}` has that node key")
        is_renewal = renews(approval, other)
        if other.name == approval.name and not (is_renewal or force):
            raise RefusalError(
                "name_taken",
                f"{path}: another `{other.name}` is admitted; --force renames its file",
            )
    if kept.exists():
        write_new(old_name(kept, at=at), read(kept))
    # replaced at one stroke: a running server shuts out for good whose approval it does not find
    write_durably(kept, as_json(approval))
    return approval


def admitted(folder: Path, *, at: datetime | None) -> list[Approval]:
    """The members that may connect: approved, not revoked, not expired, by name.

    `at=None` judges no date: these keep their place on the server, to come back when renewed.
    RunError if the list of revoked certificates is missing, expired or foreign.
    """
    revoked = revocations(folder, at=at).serials
    found_, authority = [], read(folder / AUTHORITY)
    for path in sorted((folder / ADMITTED).glob("*.json")):
        approval = read_approval(path)
        pem = approval.certificate.encode()
        try:
            read_member(pem, authority, at=at or valid_until(pem), revoked=revoked)
        except ProtocolError:
            continue
        found_.append(approval)
    return found_


def update_revocations(folder: Path, path: Path, *, at: datetime) -> int:
    """Take over a newer list from the authority; its number. An older one is refused."""
    shown, held = read(path), folder / REVOKED
    with about(path):
        later_revocations(read(held), shown, read(folder / AUTHORITY), at=at)
    write_durably(held, shown)
    return revocations(folder, at=at).number


def _verified(folder: Path, approval: Approval, path: Path, at: datetime) -> Member:
    revoked = revocations(folder, at=at).serials
    with about(path):
        pem, authority = approval.certificate.encode(), read(folder / AUTHORITY)
        return require_bound(read_member(pem, authority, at=at, revoked=revoked), approval)


def require_bound(member: Member, approval: Approval) -> Member:
    """The member; ProtocolError unless name and node key are those of its approval."""
    if member.name != approval.name:
        raise ProtocolError("certificate.name", f"is for another name than {approval.name}")
    if member.node_key_sha256 is None:
        raise ProtocolError("certificate.node_key", "names no node key; `join` makes one")
    if member.node_key_sha256 != node_key_sha256(approval.node_key.encode()):
        raise ProtocolError("certificate.node_key", "names another node key than the approval")
    return member


def renews(new: Approval, old: Approval) -> bool:
    """Whether `new` is for the keys and the name of `old`, and ends later; both were verified."""
    first, second = (
        x509.load_pem_x509_certificate(each.certificate.encode()) for each in (old, new)
    )
    return (
        (old.name, old.node_key) == (new.name, new.node_key)
        and first.public_key() == second.public_key()
        and first.not_valid_after_utc < second.not_valid_after_utc
    )


def read_invitation(folder: Path, *, at: datetime) -> tuple[Federation, bytes, bytes]:
    """What an invitation says, its authority, and its list, issued by that authority."""
    authority = read(folder / AUTHORITY)
    with about(folder / AUTHORITY):
        require_authority(authority, at=at)
    revocations(folder, at=at)
    return read_federation(folder), authority, read(folder / REVOKED)
