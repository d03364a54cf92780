"""What an authority issued: every member's certificate so far, and one writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedattn.certificates import read_member, valid_until
from fedattn.errors import RefusalError, RunError
from fedattn.federation.documents import Approval, MemberRequest, read_approval
from fedattn.federation.folders import AUTHORITY, ISSUED, about, read


@dataclass(frozen=True)
class Issued:
    """A member's certificate as the authority remembers it."""

    approval: Approval
    path: Path
    public_key: bytes
    serial: int
    until: datetime


def issued_members(folder: Path) -> list[Issued]:
    """Every member's certificate that was ever issued: renewed, ended, revoked ones included.

    The last one of a name is issued/NAME.json; those before it are issued/NAME.json.old-TIME.
    """
    made = []
    authority, place = read(folder / AUTHORITY), folder / ISSUED
    for path in sorted({*place.glob("*.json"), *place.glob("*.json.old-*")}):
        approval = read_approval(path)
        pem = approval.certificate.encode()
        with about(path):
            until = valid_until(pem)
            member = read_member(pem, authority, at=until)
        assert member.serial is not None  # a certificate's, not a request's
        made.append(Issued(approval, path, member.public_key, member.serial, until))
    return made


def require_free(
    folder: Path, request: MemberRequest, revoked: Collection[int], *, at: datetime
) -> None:
    """RefusalError unless name and keys are free, or all three are those of one certificate.

    A key that was taken back is free no more: Flower lets no node key in again that it shut out.
    """
    asked = request.verified()
    for issued in issued_members(folder):
        name, node_key = issued.approval.name, issued.approval.node_key
        same = {
            "name_taken": name == asked.name,
            "key_taken": issued.public_key == asked.public_key,
            "node_key_taken": node_key == request.node_key,
        }
        if issued.serial in revoked:
            if same["key_taken"] or same["node_key_taken"]:
                raise RefusalError(
                    "key_revoked",
                    f"a key of this request was taken back with `{name}`; on the device, make new "
                    "ones by  fedattn federation join ... --force  and approve that request",
                )
        elif at <= issued.until and any(same.values()) and not all(same.values()):
            raise RefusalError(
                next(rule for rule, is_so in same.items() if is_so),
                f"`{name}` has a valid certificate; if this is to take its place, run  "
                f"fedattn federation revoke {folder} {name}  first",
            )


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Others who would change the authority's folder wait: two lists must not share a number."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunError(f"{folder}: cannot be opened ({error.strerror})") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # and with it the lock
