"""Which SuperNodes the SuperLink lets in: exactly the devices that are admitted and not revoked.

Flower never takes a node key back that was unregistered. So a node is unregistered for a reason
that is for good (its certificates were revoked, its approval removed), not for a certificate that
ended: that is renewed for the same keys, and until then its device cannot enrol.

Flower authenticates a SuperNode by its node key and gives it a node id; the authority's
certificate binds a device's identity to that key. `nodes.json` (node id -> SHA-256 of the node
key) is what the ServerApp compares an enrolling device with.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedattn.certificates import node_key_sha256
from fedattn.errors import FedattnError, RunError
from fedattn.federation import admitted
from fedattn.federation.folders import ADMITTED, REVOKED
from fedattn.flower.deployment.control import Control, UnreachableError
from fedattn.flower.deployment.folders import ServerFolder, replace

NODES_FILE: Final = "nodes.json"
_LOCK_FILE: Final = "nodes.lock"


def register(folder: ServerFolder, control: Control) -> list[str]:
    """Bring the SuperLink's list in line with `admitted/`, and write `nodes.json`.

    Registers whom it does not know, unregisters who was revoked or removed; may be repeated at
    any time.
    Returns lines for a person.
    """
    with (folder.path / _LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `start` and `run` both register
        return _register(folder, control)


def _register(folder: ServerFolder, control: Control) -> list[str]:
    wanted = {_pem(each.node_key): each for each in admitted(folder.path, at=datetime.now(UTC))}
    kept = wanted | {_pem(each.node_key): each for each in admitted(folder.path, at=None)}
    known, lines = control.nodes(), []  # node key (PEM) -> node id
    for pem in known.keys() - kept.keys():
        control.unregister_node(known[pem])
        lines.append(f"node {known.pop(pem)}: unregistered, its device may take part no more")
    for pem in wanted.keys() - known.keys():
        name = wanted[pem].name
        try:
            known[pem] = control.register_node(pem, name)
        except UnreachableError:
            raise
        except RunError as error:  # Flower takes no key back that was unregistered
            lines.append(f"{name}: not registered ({error}); on it: join --force, then approve")
            continue
        lines.append(f"{name}: registered as node {known[pem]}")
    nodes = {
        str(known[pem]): node_key_sha256(each.node_key.encode())
        for pem, each in kept.items()
        if pem in known
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
        seen = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # it may be replaced just now
                seen.append((path.name, path.stat().st_mtime_ns))
        return seen


def _pem(node_key: str) -> bytes:
    """An OpenSSH public key as Flower writes it."""
    key = load_ssh_public_key(node_key.encode())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
