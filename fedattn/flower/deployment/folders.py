"""What the processes of a federation read from its folders: a server's, or a device's."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from fedattn.errors import RunError
from fedattn.federation import require_ready

PORT_FILE: Final = "runtime-port"
# What the front lets through. A message's content goes up in parts, a record of bytes whole; all
# else that a SuperNode posts is names and hashes of parts, a few kB however large the round.
OBJECT_PATH: Final = "/v1/fleet/push-object"
MAX_OBJECT_MB: Final = 512  # in OBJECT_PATH
MAX_BODY_MB: Final = 1  # in every other path
_POLL_S: Final = 0.5


@dataclass(frozen=True)
class ServerFolder:
    """A server's folder: where its front listens, and where its SuperLink does (loopback)."""

    path: Path
    host: str
    port: int
    superlink_port: int
    authority_held_by: str
    front: str = "auto"  # "nginx" or "python": which one must be used
    listen: str = "0.0.0.0"  # noqa: S104 (the front is what the world may reach)

    @property
    def is_local(self) -> bool:
        """Its front listens on loopback alone."""
        return _is_loopback(self.listen)

    @property
    def superlink(self) -> str:
        """The SuperLink's address, on this machine alone."""
        return f"127.0.0.1:{self.superlink_port}"


@dataclass(frozen=True)
class DeviceFolder:
    """A device's folder: which server it talks to, and how often it asks for messages."""

    path: Path
    host: str
    port: int
    name: str
    poll_s: float


def open_folder(path: Path) -> ServerFolder | DeviceFolder:
    """The folder, ready to start: a server's or a device's.

    RunError naming what is missing, expired, revoked or readable by others.
    """
    kind = require_ready(path, at=datetime.now(UTC))
    return open_server(path) if kind == "server" else open_device(path)


def open_server(path: Path) -> ServerFolder:
    """The server's folder that `fedattn federation init` made."""
    path = path.resolve()
    raw = _read(path / "server.yaml", "host", "port", "superlink_port")
    front = str(raw.get("front") or "auto")
    if front not in ("auto", "nginx", "python"):
        raise RunError(f"{path / 'server.yaml'}: front is {front!r}; use auto, nginx or python")
    return ServerFolder(
        path,
        str(raw["host"]),
        int(raw["port"]),
        int(raw["superlink_port"]),
        str(raw.get("authority_held_by", "")),
        front,
        str(raw.get("listen") or _everywhere(str(raw["host"]))),
    )


def open_device(path: Path) -> DeviceFolder:
    """The device's folder that `fedattn federation join` made."""
    path = path.resolve()
    raw = _read(path / "federation.yaml", "host", "port")
    poll_s = float(_POLL_S if raw.get("poll_s") is None else raw["poll_s"])
    if not 0.05 <= poll_s <= 60:
        raise RunError(f"{path / 'federation.yaml'}: poll_s is {poll_s:g}; must be 0.05..60")
    return DeviceFolder(
        path, str(raw["host"]), int(raw["port"]), str(raw.get("name", path.name)), poll_s
    )


def choose_runtime_port(device: Path) -> int:
    """A free port on loopback for the SuperNode's Runtime API, written where the runner looks.

    The port of the last start is kept if it is still free.
    """
    path = device / PORT_FILE
    last = int(path.read_text()) if path.exists() else 0
    for wanted in (last, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
        replace(path, str(port).encode())
        return port
    raise RunError("no free port on 127.0.0.1")


def replace(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write the whole file or nothing: a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _everywhere(host: str) -> str:
    """Where a front listens unless told: on every address, for a loopback host on loopback."""
    return "127.0.0.1" if _is_loopback(host) else "0.0.0.0"  # noqa: S104


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def _read(path: Path, *need: str) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError:
        raise RunError(f"{path}: is not YAML") from None
    missing = [key for key in need if not isinstance(raw, dict) or key not in raw]
    if missing:
        raise RunError(f"{path}: lacks {', '.join(missing)}")
    return dict(raw)
