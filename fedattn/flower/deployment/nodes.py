"""Which SuperNodes the SuperLink lets in: exactly the devices that are admitted and not revoked.

Flower authenticates a SuperNode by its node key and gives it a node id; the authority's
certificate binds a device's identity to that key. `nodes.json` (node id -> SHA-256 of the node
key) is what the ServerApp compares an enrolling device with.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedattn.certificates import node_key_sha256
from fedattn.errors import FedattnError
from fedattn.federation import admitted
from fedattn.federation.folders import ADMITTED, REVOKED
from fedattn.flower.deployment.control import Control, UnreachableError
from fedattn.flower.deployment.folders import ServerFolder, replace

NODES_FILE: Final = "nodes.json"
_LOCK_FILE: Final = "nodes.lock"


def register(folder: ServerFolder, control: Control) -> list[str]:
    """Bring the SuperLink's list in line with `admitted/`, and write `nodes.json`.

    Registers whom it does not know, unregisters whom it should not; may be repeated at any time.
    Returns lines for a person.
    """
    with (folder.path / _LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `start` and `run` both register
        return _register(folder, control)


def _register(folder: ServerFolder, control: Control) -> list[str]:
    wanted = {_pem(each.node_key): each for each in admitted(folder.path, at=datetime.now(UTC))}
    known, lines = control.nodes(), []  # node key (PEM) -> node id
    for pem in known.keys() - wanted.keys():
        control.unregister_node(known[pem])
        lines.append(f"node {known.pop(pem)}: unregistered, its device may take part no more")
    for pem in wanted.keys() - known.keys():
        known[pem] = control.register_node(pem, wanted[pem].name)
        lines.append(f"{wanted[pem].name}: registered as node {known[pem]}")
    nodes = {
        str(known[pem]): node_key_sha256(each.node_key.encode()) for pem, each in wanted.items()
    }
    replace(folder.path / NODES_FILE, json.dumps(nodes, indent=2, sort_keys=True).encode())
    return lines


class Registrar:
    """Registers again whenever a device was admitted or revoked while the server runs."""

    def __init__(self, folder: ServerFolder, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._seen: object = None

    def look(self) -> None:
        """Register if `admitted/` or the list of revoked certificates changed."""
        now = self._snapshot()
        if now == self._seen:
            return
        try:
            with Control(self._folder) as control:
                for line in register(self._folder, control):
                    self._say(line)
        except UnreachableError:
            return  # the SuperLink is not up yet: at the next look
        except FedattnError as error:
            self._say(str(error))
        self._seen = now

    def _snapshot(self) -> object:
        paths = sorted((self._folder.path / ADMITTED).glob("*.json"))
        paths.append(self._folder.path / REVOKED)
        return [(path.name, path.stat().st_mtime_ns) for path in paths if path.exists()]


def _pem(node_key: str) -> bytes:
    """An OpenSSH public key as Flower writes it."""
    key = load_ssh_public_key(node_key.encode())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
