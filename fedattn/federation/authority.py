"""The authority's side: found a federation, approve requests, take certificates back."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedattn.certificates import (
    Authority,
    Revocations,
    certify,
    certify_server,
    make_authority,
    make_revocations,
    read_revocations,
    read_server_request,
    require_authority,
    valid_until,
)
from fedattn.durable import write_durably
from fedattn.errors import ProtocolError, RefusalError, RunError
from fedattn.federation.documents import (
    Approval,
    Federation,
    MemberRequest,
    ServerApproval,
    ServerRequest,
    as_json,
    as_yaml,
    read_federation,
    require_words,
)
from fedattn.federation.folders import (
    AUTHORITY,
    AUTHORITY_KEY,
    FEDERATION,
    INVITATION,
    ISSUED,
    README,
    REVOKED,
    SERVERS,
    about,
    make_folder,
    make_way,
    read,
    require_kind,
    set_aside,
    template,
    write_new,
)
from fedattn.federation.issued import issued_members, one_writer, require_free
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey, fingerprint

AUTHORITY_DAYS: Final = 3650
MEMBER_DAYS: Final = 365
SERVER_DAYS: Final = 365
REVOCATION_DAYS: Final = 90
# A device's clock may be late: documents begin a little before they are made.
_CLOCKS: Final = timedelta(hours=1)
INVITATION_COMMENT: Final = "Where this federation is. Public; authority.pem is what to trust."


def found(
    root: Path, name: str, *, held_by: str, at: datetime, valid_days: int = AUTHORITY_DAYS,
    force: bool = False
) -> Path:  # fmt: skip
    """Make root/authority (with the key) and root/invitation (public); return the first.

    `held_by` says who holds the key: "server", or the name of another party.
    """
    require_words(name=name, held_by=held_by)
    folder, invitation = root / "authority", root / INVITATION
    public = (AUTHORITY, REVOKED, FEDERATION)
    # what the old authority issued is void under a new key
    make_way(folder, (AUTHORITY_KEY, *public, ISSUED, SERVERS, README), force=force, at=at)
    make_way(invitation, (*public, README), force=force, at=at)
    stream = Randomness.from_os()
    authority = make_authority(
        stream, "fedattn-authority", at=at - 2 * _CLOCKS, valid_days=valid_days
    )
    make_folder(folder, private=True)
    for each in (folder / ISSUED, folder / SERVERS):
        make_folder(each, private=False)
    make_folder(invitation, private=False)
    authority.key.save(folder / AUTHORITY_KEY)
    crl = make_revocations(authority, (), 1, at=at - _CLOCKS, valid_days=REVOCATION_DAYS)
    federation = Federation(name=name, authority_held_by=held_by)
    for place in (folder, invitation):
        write_new(place / AUTHORITY, authority.certificate)
        write_new(place / REVOKED, crl)
        write_new(place / FEDERATION, as_yaml(federation, INVITATION_COMMENT))
    mark = fingerprint(authority.key.public_bytes)
    write_new(folder / README, template("authority.md", name=name, fingerprint=mark))
    write_new(invitation / README, template("invitation.md", name=name, fingerprint=mark))
    return folder


def authority_fingerprint(certificate: bytes) -> str:
    """What people compare: the fingerprint of the authority's key."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    return fingerprint(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def approve(
    folder: Path, request: MemberRequest, *, at: datetime, valid_days: int = MEMBER_DAYS
) -> Path:
    """Certify a device; the approval's path. A person has compared the fingerprints before.

    A request of the name, identity and node key of a certificate that is valid is a renewal: both
    are valid then, and `revoke` takes back both. RefusalError("name_taken" | "key_taken" |
    "node_key_taken") while another certificate of the same name or key is valid: one that is lost
    is to be revoked first; ("key_revoked") for a key that was taken back.
    """
    with one_writer(folder):
        authority, asked = _open(folder, at), request.verified()
        require_free(folder, request, revocations(folder, at=None).serials, at=at)
        begin, days = _validity(authority, at, valid_days)
        certificate = certify(
            authority, request.request.encode(), asked.name, Randomness.from_os(), at=begin,
            valid_days=days
        )  # fmt: skip
        approval = Approval(
            name=asked.name, certificate=certificate.decode(), node_key=request.node_key
        )
        path = folder / ISSUED / f"{asked.name}.json"
        if path.exists():
            set_aside(path, at=at)
        write_new(path, as_json(approval))
        return path


def approve_server(
    folder: Path, request: ServerRequest, *, at: datetime, valid_days: int = SERVER_DAYS
) -> Path:
    """Certify the server's host and complete the invitation; the approval's path.

    RefusalError("server_taken") for another server than the one that devices were invited to.
    """
    with one_writer(folder):
        authority, host = _open(folder, at), request.verified()
        mark = fingerprint(bytes.fromhex(request.server_key))
        federation = read_federation(folder)
        if federation.server_key not in (None, mark):
            raise RefusalError(
                "server_taken",
                f"the federation has the server {federation.host} with another key; a server that "
                "lost its key starts a new federation, or restores the key from its backup",
            )
        begin, days = _validity(authority, at, valid_days)
        pem = request.request.encode()
        certificate = certify_server(
            authority, pem, host, Randomness.from_os(), at=begin, valid_days=days
        )
        path = folder / SERVERS / f"{host}.json"
        if path.exists():
            set_aside(path, at=at)
        write_new(path, as_json(ServerApproval(certificate=certificate.decode())))
        complete = federation.model_copy(
            update={"host": host, "port": request.port, "server_key": mark}
        )
        for place in (folder, folder.parent / INVITATION):
            if place.is_dir():
                write_durably(place / FEDERATION, as_yaml(complete, INVITATION_COMMENT))
        return path


def revoke(
    folder: Path, name: str | None, *, at: datetime, valid_days: int = REVOCATION_DAYS
) -> Revocations:
    """Take back all certificates of `name` (None: nobody's) in a new list with a later end.

    Every certificate that was ever issued under the name: a renewed one is valid to its end, too.
    The new list replaces the one in the authority's folder, and in the invitation and the server
    that one party keeps beside it.
    """
    with one_writer(folder):
        authority, current = _open(folder, at), revocations(folder, at=None)
        serials = set(current.serials)
        if name is not None:
            issued = issued_members(folder)
            mine = {each.serial for each in issued if each.approval.name == name}
            if not mine:
                known = ", ".join(sorted({each.approval.name for each in issued})) or "none"
                raise RunError(f"{folder}: no certificate of `{name}`; there are: {known}")
            if mine <= serials:
                raise RunError(f"{folder}: the certificate of `{name}` is revoked already")
            serials |= mine
        number = current.number + 1
        crl = make_revocations(authority, serials, number, at=at - _CLOCKS, valid_days=valid_days)
        for place in (folder, folder.parent / INVITATION, folder.parent / "server"):
            if (place / AUTHORITY).exists() and read(place / AUTHORITY) == authority.certificate:
                write_durably(place / REVOKED, crl)
        return read_revocations(crl, authority.certificate, at=at)


def revocations(folder: Path, *, at: datetime | None) -> Revocations:
    """The list that lies in a folder, verified under the authority that is pinned there."""
    with about(folder / REVOKED):
        return read_revocations(read(folder / REVOKED), read(folder / AUTHORITY), at=at)


def describe(request: MemberRequest | ServerRequest) -> list[tuple[str, str]]:
    """What a person compares before approving: label and value."""
    if isinstance(request, ServerRequest):
        host = read_server_request(request.request.encode()).host
        return [
            ("asks to be", "the server of the federation"),
            ("host", host),
            ("port", str(request.port)),
            ("server key", fingerprint(bytes.fromhex(request.server_key))),
        ]
    asked = request.verified()
    assert asked.node_key_sha256 is not None  # `verified` compared it
    return [
        ("asks to be", "a member"),
        ("name", asked.name),
        ("identity", fingerprint(asked.public_key)),
        ("node key", asked.node_key_sha256),
    ]


def _validity(authority: Authority, at: datetime, valid_days: int) -> tuple[datetime, int]:
    """When a certificate made at `at` begins, and its days, which end before the authority's."""
    begin, end = at - _CLOCKS, valid_until(authority.certificate)
    remaining = (end - begin).days
    if remaining < 1:
        raise RunError(f"the authority ends at {end}, within a day; found a new federation")
    return begin, min(valid_days, remaining)


def _open(folder: Path, at: datetime) -> Authority:
    require_kind(folder, "authority")
    key, certificate = SigningKey.load(folder / AUTHORITY_KEY), read(folder / AUTHORITY)
    with about(folder / AUTHORITY):
        require_authority(certificate, at=at)
        if authority_fingerprint(certificate) != fingerprint(key.public_bytes):
            raise ProtocolError("certificate.authority", f"is not of the key in {AUTHORITY_KEY}")
    return Authority(key, certificate)
