"""The start commands of a federation's processes: the only place that knows them.

`fedattn federation start`, the systemd units, the containers and the tests all run what these
functions return. A server is a SuperLink on 127.0.0.1 and a TLS front that exposes `/v1/fleet/`
alone; a device is a SuperNode and the resident runner.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedattn.errors import RunError
from fedattn.flower.deployment.folders import DeviceFolder, ServerFolder
from fedattn.flower.deployment.loopback import CERTIFICATE, KEY

NGINX_CONF: Final = "nginx.conf"
FRONT_DIR: Final = "front"
_BIN: Final = Path(sys.executable).parent  # Flower's commands, beside the Python that runs this


@dataclass(frozen=True)
class Command:
    """A process: what to execute, what to add to its environment, where its log goes."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path


def superlink(folder: ServerFolder) -> Command:
    """Flower's SuperLink on 127.0.0.1: node keys are checked, state outlives a kill."""
    argv = (
        str(_BIN / "flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(folder.superlink_port)),
        *("--ssl-certfile", str(folder.path / CERTIFICATE)),
        *("--ssl-keyfile", str(folder.path / KEY)),
        *("--ssl-ca-certfile", str(folder.path / CERTIFICATE)),
        *("--database", str(folder.path / "superlink.db")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    )
    env = _env(folder.path) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    return Command("superlink", argv, env, _log(folder.path, "superlink"))


def front(folder: ServerFolder) -> Command:
    """The TLS front: nginx where it is installed, else fedattn's own.

    RunError if the world may reach it and nobody chose fedattn's, which cannot shed idle
    connections: a thousand of them, of anybody, and no device gets through.
    """
    kind = folder.front
    nginx = find_nginx()
    if kind == "nginx" and nginx is None:
        raise RunError(
            f"{folder.path / 'server.yaml'}: front is nginx, which is not installed; install it, "
            "or choose `front: python`"
        )
    if kind == "auto" and nginx is None and not folder.is_local:
        raise RunError(
            f"{folder.path / 'server.yaml'}: the front on {folder.listen} is for the world; "
            "install nginx, or say `front: python` in server.yaml"
        )
    if nginx is not None and kind != "python":
        argv: tuple[str, ...] = (
            nginx,
            *("-p", str(folder.path / FRONT_DIR)),
            *("-c", str(folder.path / FRONT_DIR / NGINX_CONF)),
            *("-e", "stderr"),
            *("-g", "daemon off;"),
        )
    else:
        argv = (sys.executable, "-m", "fedattn.flower.front", str(folder.path))
    return Command("front", argv, _env(folder.path), _log(folder.path, "front"))


def supernode(folder: DeviceFolder, runtime_port: int) -> Command:
    """Flower's SuperNode: it only relays; its Runtime API is on 127.0.0.1, for the runner."""
    path = str(folder.path)
    if '"' in path or "'" in path:
        raise RunError(f"{path}: Flower cannot take a path with quotes; move the folder")
    argv = (
        *(sys.executable, "-m", "fedattn.flower.supernode", "--poll-s", f"{folder.poll_s:g}"),
        *("--superlink", f"{folder.host}:{folder.port}"),
        *("--root-certificates", str(folder.path / "authority.pem")),
        *("--auth-supernode-private-key", str(folder.path / "node-key")),
        *("--isolation", "process"),
        *("--host", "127.0.0.1", "--port", str(runtime_port)),
        *("--superexec-auth-secret-file", str(folder.path / "superexec-secret")),
        *("--node-config", f'device-dir="{path}"'),
    )
    return Command("supernode", argv, _env(folder.path), _log(folder.path, "supernode"))


def runner(folder: DeviceFolder) -> Command:
    """The resident runner: the installed fedattn, for bundles that the policy lists."""
    argv = (sys.executable, "-m", "fedattn.flower.runner", str(folder.path))
    return Command("runner", argv, _env(folder.path), _log(folder.path, "runner"))


def find_nginx() -> str | None:
    """The nginx of this machine, if any (it is often outside a user's PATH)."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _env(folder: Path) -> dict[str, str]:
    # Flower's own home, never the user's; no telemetry, no question for updates.
    return {
        "FLWR_HOME": str(folder / "flwr-home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def _log(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.log"
