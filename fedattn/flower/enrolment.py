"""Who takes part: devices that the federation's authority certified, in one order for a run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from fedattn.audit.ledger_checks import CERTIFICATES_FILE
from fedattn.certificates import read_member
from fedattn.config import Config
from fedattn.errors import ProtocolError, ThresholdError
from fedattn.flower import wire


def enrol(
    grid: Grid, config: Config, authority: bytes, run_dir: Path
) -> tuple[list[int], tuple[bytes, ...]]:
    """Nodes in the order of the roster, and their public keys.

    Each device shows its certificate; who has none, or none of `authority` (PEM), is left out.
    Then every member is shown all certificates, to verify them itself under the authority that
    it pinned; they are kept in the run directory for an auditor. ThresholdError if too few enrol.
    """
    timeout, nodes = config.secagg.stage_timeout_s, sorted(grid.get_node_ids())
    asked = [grid.create_message(wire.pack(), wire.ENROLL, node, "0") for node in nodes]
    members = _members(grid.send_and_receive(asked, timeout=timeout), authority)
    need = config.secagg.threshold
    if len(members) < need:
        raise ThresholdError(
            f"{len(members)} certified devices enrolled, need {need}; start more clients, have "
            "the authority certify them, or lower secagg.threshold"
        )
    certificates = b"".join(certificate for _, _, certificate in members)
    (run_dir / CERTIFICATES_FILE).write_bytes(certificates)
    shown = wire.pack(certificates=certificates)
    messages = [grid.create_message(shown, wire.MEMBERS, node, "0") for node, _, _ in members]
    list(grid.send_and_receive(messages, timeout=timeout))  # who declines will decline each round
    return [node for node, _, _ in members], tuple(key for _, key, _ in members)


def _members(replies: Iterable[Message], authority: bytes) -> list[tuple[int, bytes, bytes]]:
    """(node, public key, certificate) of each verified device, by node; a key counts once."""
    members: dict[bytes, tuple[int, bytes, bytes]] = {}
    for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
        if reply.has_error() or wire.refusal(reply) is not None:
            continue
        try:
            certificate, key = wire.field(reply, "certificate"), wire.field(reply, "key")
            member = read_member(certificate, authority, at=datetime.now(UTC))
        except ProtocolError:
            continue
        if member.public_key == key:
            members.setdefault(key, (reply.metadata.src_node_id, key, certificate))
    return list(members.values())
