"""The folders of a federation's parties: what lies where, who may read it, nothing overwritten.

A private key is written once, with mode 0600, into the folder that it never leaves. A file in the
way is refused; with `force` it is renamed to NAME.old-TIME, keys above all, and never lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Final

from fedattn.durable import sync_folder
from fedattn.errors import ProtocolError, RunError

AUTHORITY_KEY: Final = "authority-key.pem"
AUTHORITY: Final = "authority.pem"
REVOKED: Final = "revoked.crl"
ISSUED: Final = "issued"  # a folder of approvals, NAME.json
SERVERS: Final = "servers"  # a folder of approvals, HOST.json
FEDERATION: Final = "federation.yaml"
SERVER_KEY: Final = "server.pem"
TLS_KEY: Final = "tls-key.pem"
TLS: Final = "tls.pem"
SERVER: Final = "server.yaml"
ADMITTED: Final = "admitted"  # a folder of approvals, NAME.json
REQUEST: Final = "request.json"
IDENTITY: Final = "identity.pem"
NODE_KEY: Final = "node-key"
NODE_KEY_PUBLIC: Final = "node-key.pub"
LEDGER_KEY: Final = "ledger-key.pem"
SUPEREXEC_SECRET: Final = "superexec-secret"  # noqa: S105 - a file's name
CERTIFICATE: Final = "certificate.pem"
POLICY: Final = "policy.yaml"
START: Final = "start.sh"
README: Final = "README.md"
INVITATION: Final = "invitation"

SECRETS: Final = {
    "authority": (AUTHORITY_KEY,),
    "server": (SERVER_KEY, TLS_KEY),
    "device": (IDENTITY, NODE_KEY, LEDGER_KEY, SUPEREXEC_SECRET),
    "invitation": (),
}


def kind_of(folder: Path) -> str:
    """Whose folder this is: "authority", "server", "device" or "invitation"; RunError if none."""
    for kind, file in (
        ("authority", AUTHORITY_KEY),
        ("device", IDENTITY),
        ("server", SERVER_KEY),
        ("invitation", AUTHORITY),
    ):
        if (folder / file).exists():
            return kind
    raise RunError(
        f"{folder}: no folder of a federation; `fedattn federation init`, `server` or `join` "
        "makes one"
    )


def require_kind(folder: Path, kind: str) -> None:
    """RunError unless the folder is of that kind, and its secrets are its owner's alone."""
    found = kind_of(folder)
    if found != kind:
        raise RunError(f"{folder}: is the folder of the {found}, not of the {kind}")
    for name in SECRETS[kind]:
        require_private(folder / name)


def require_private(path: Path) -> None:
    """RunError unless the file is there and nobody but its owner can read it."""
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        raise RunError(
            f"{path}: missing; restore it from the backup or make a new folder"
        ) from None
    except OSError as error:
        raise RunError(f"{path}: cannot be looked at ({error.strerror})") from None
    if mode & 0o077:
        raise RunError(
            f"{path}: others can read or change it (mode {mode:04o}); run  chmod 600 {path}  "
            "and replace the key if anybody may have"
        )


@contextmanager
def about(path: Path) -> Iterator[None]:
    """What a certificate or list in `path` is refused for, said of that path."""
    try:
        yield
    except ProtocolError as error:
        raise RunError(f"{path}: {error}") from None


def read(path: Path) -> bytes:
    """The file's bytes; RunError naming it if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None


def make_folder(path: Path, *, private: bool) -> None:
    """Make the folder; a private one is its owner's alone."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if private:
            path.chmod(0o700)
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror})") from None


def make_way(folder: Path, names: Iterable[str], *, force: bool, at: datetime) -> None:
    """RunError if one of the files is there; with `force` they are renamed, none is lost."""
    found = [name for name in names if os.path.lexists(folder / name)]
    if found and not force:
        raise RunError(
            f"{folder / found[0]}: exists; nothing is overwritten. --force renames what is in the "
            "way to NAME.old-TIME"
        )
    for name in found:
        set_aside(folder / name, at=at)


def old_name(path: Path, *, at: datetime) -> Path:
    """Where an older version of a file is kept: NAME.old-TIME, the first such that is free."""
    stem = f"{path.name}.old-{at:%Y%m%dT%H%M%SZ}"
    aside, count = path.with_name(stem), 1
    while os.path.lexists(aside):
        count += 1
        aside = path.with_name(f"{stem}-{count}")
    return aside


def set_aside(path: Path, *, at: datetime) -> Path:
    """Rename a file to its `old_name`."""
    aside = old_name(path, at=at)
    try:
        path.rename(aside)
    except OSError as error:
        raise RunError(f"{path}: cannot be renamed ({error.strerror})") from None
    return aside


def write_private(path: Path, content: bytes) -> None:
    """A new file that its owner alone can read, on disk before this returns."""
    _create(path, content, 0o600)


def write_new(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """A new public file, on disk before this returns; RunError if there is one."""
    _create(path, content, mode)


def template(file: str, /, **values: str) -> bytes:
    """A text of `fedattn/assets/federation/` with its {{keys}} filled in."""
    text = (resources.files("fedattn") / "assets" / "federation" / file).read_text("utf-8")
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return text.encode()


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)  # whatever the umask
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except FileExistsError:
        raise RunError(f"{path}: exists; nothing is overwritten") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None
