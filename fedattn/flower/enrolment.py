"""Who takes part: devices that the federation's authority certified, in one order for a run.

In a deployment each certificate is bound to a Flower node key, and the SuperLink vouches for who
holds which (`nodes`). Enrolment happens once a run: a device that restarts keeps its node key, so
its node id, so its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from fedattn.audit.ledger_checks import CERTIFICATES_FILE
from fedattn.certificates import read_member, read_revocations
from fedattn.config import Config
from fedattn.durable import write_durably
from fedattn.errors import ProtocolError, ThresholdError
from fedattn.flower import wire
from fedattn.flower.exchange import replies
from fedattn.flower.observer import Observer

_RULE = re.compile(r"\A[a-z_.]{1,64}\Z")


class Member(NamedTuple):
    """A device that the authority certified, and the node that speaks for it."""

    node: int
    key: bytes  # raw Ed25519
    certificate: bytes  # PEM
    name: str = ""  # as certified


def enrol(
    grid: Grid,
    config: Config,
    authority: bytes,
    run_dir: Path,
    *,
    nodes: Mapping[int, str] | None = None,
    revoked: bytes = b"",
    observer: Observer | None = None,
) -> list[Member]:
    """The members of this run in the order of the roster.

    Each device shows its certificate; who has none, or none of `authority` (PEM), or one on its
    list `revoked` (CRL, PEM; b"": none), is left out, and `observer` is told by which rule. In a
    deployment `nodes` says which node key (SHA-256, hex) a node authenticated with: a certificate
    counts from the node alone whose key it names. The certificates are kept in the run directory
    for an auditor. ThresholdError if too few enrol; ProtocolError("certificate.revocations.*") if
    the list does not hold.
    """
    timeout, asked_nodes = config.secagg.stage_timeout_s, sorted(grid.get_node_ids())
    out = read_revocations(revoked, authority, at=datetime.now(UTC)).serials if revoked else ()
    asked = [
        grid.create_message(wire.pack(), wire.ENROLL, node, "0", ttl=timeout)
        for node in asked_nodes
    ]
    enrolment = _Enrolment(authority, frozenset(out), nodes)
    members = enrolment.take(
        (asked_nodes[place], reply) for place, reply in replies(grid, asked, timeout)
    )
    if observer is not None:
        for node, rule in enrolment.left_out:
            observer.note(f"node {node} is left out of the run: {rule}")
    need = config.secagg.threshold
    if len(members) < need:
        raise ThresholdError(
            f"{len(members)} certified devices enrolled, need {need}; start more clients, have "
            "the authority certify them, or lower secagg.threshold"
        )
    if config.seed is not None:
        # Node ids differ from engine to engine, and a seeded run must not.
        members.sort(key=lambda member: (_counted(member.name), member.key))
    certificates = b"".join(each.certificate for each in members)
    write_durably(run_dir / CERTIFICATES_FILE, certificates)
    return members


def introduce(grid: Grid, config: Config, members: Sequence[Member], revoked: bytes = b"") -> None:
    """Show `members` each other's certificates, to verify under the authority that each pinned.

    The authority's list of revoked certificates goes along, if there is one: a device keeps the
    latest that it saw. Whoever declines will decline the rounds, too.
    """
    certificates = b"".join(member.certificate for member in members)
    shown = wire.pack(certificates=certificates)
    if revoked:
        shown = wire.pack(certificates=certificates, revoked=revoked)
    timeout = config.secagg.stage_timeout_s
    messages = [
        grid.create_message(shown, wire.MEMBERS, each.node, "0", ttl=timeout) for each in members
    ]
    for _ in replies(grid, messages, timeout):
        pass


class _Enrolment:
    """Verifies what devices show; `left_out` says whom not, and by which rule."""

    def __init__(
        self, authority: bytes, revoked: frozenset[int], nodes: Mapping[int, str] | None
    ) -> None:
        self._authority, self._revoked, self._nodes = authority, revoked, nodes
        self.left_out: list[tuple[int, str]] = []

    def take(self, replies: Iterable[tuple[int, Message]]) -> list[Member]:
        """Every verified device, by node; a key, a serial and a name count once."""
        members, seen = [], set[bytes | int | str | None]()
        for node, reply in sorted(replies, key=lambda pair: pair[0]):
            try:
                member, serial = self._verified(node, reply)
            except ProtocolError as error:
                self.left_out.append((node, error.check))
                continue
            marks = {member.key, serial, member.name}
            if seen & marks:  # or every device would refuse the whole roster
                self.left_out.append((node, "certificate.repeated"))
                continue
            seen |= marks
            members.append(member)
        return members

    def _verified(self, node: int, reply: Message) -> tuple[Member, int | None]:
        if reply.has_error():
            raise ProtocolError("error", "the device answered with an error")
        declined = wire.refusal(reply)
        if declined is not None:
            rule = declined if _RULE.match(declined) else "unknown"  # a device's own words
            raise ProtocolError(f"refusal.{rule}", "the device declined")
        certificate, key = wire.field(reply, "certificate"), wire.field(reply, "key")
        found = read_member(
            certificate, self._authority, at=datetime.now(UTC), revoked=self._revoked
        )
        if found.public_key != key:
            raise ProtocolError("certificate.key", "is for another key than the device's")
        if self._nodes is not None:
            if node not in self._nodes:
                raise ProtocolError("node.unlisted", "was not registered by this server")
            if found.node_key_sha256 is None:
                raise ProtocolError("certificate.node_key", "names no node key")
            if found.node_key_sha256 != self._nodes[node]:
                raise ProtocolError("node.key", "another node's certificate")
        return Member(node, key, certificate, found.name), found.serial


def _counted(name: str) -> list[tuple[int, str]]:
    """An order in which client-10 comes after client-9.

    >>> sorted(["client-10", "client-9", "a"], key=_counted)
    ['a', 'client-9', 'client-10']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
