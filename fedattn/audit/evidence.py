"""What an audit looks at: the files of a run, and the keys that the auditor pinned."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from fedattn.config import Config, Row, config_from_dict
from fedattn.durable import read_regular
from fedattn.entries import Close, Intent, Open, Release
from fedattn.errors import FedattnError, LedgerError, RunError
from fedattn.ledger import LedgerEntry, read_ledger
from fedattn.privacy.events import Event
from fedattn.privacy.rows import RowSpend, hypothetical_spends, spends
from fedattn.report import (
    LEDGER_FILE,
    REPORT_FILE,
    SIGNATURE_FILE,
    Report,
    canonical_signature,
    parse_report,
    refuse_other,
    show_epsilon,
)
from fedattn.signing import fingerprint

# What a value that no run has may raise where nothing expects it: a finding or error, no crash.
IMPOSSIBLE: Final = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
_HEX = re.compile(r"\A[0-9a-f]{64}\Z")


class CheckFailedError(Exception):
    """A check's own finding; the message is its detail."""


def require(condition: bool, finding: str) -> None:
    """Raise CheckFailedError with `finding` unless the condition holds."""
    if not condition:
        raise CheckFailedError(finding)


def same_sentences(stated: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Raise CheckFailedError unless the stated sentences are the wanted ones, in order.

    One more could say that the others do not count.
    """
    missing = [line for line in wanted if line not in stated]
    require(not missing, f"{where}: missing “{missing[0] if missing else ''}”")
    added = [line for line in stated if line not in wanted]
    require(not added, f"{where}: “{added[0] if added else ''}” follows from nothing")
    require(list(stated) == list(wanted), f"{where}: repeated, or in another order")


@dataclass(frozen=True)
class Evidence:
    """The stored bytes of one finished run and what the auditor trusts."""

    run_dir: Path
    entries: list[LedgerEntry]
    report_bytes: bytes
    signature_bytes: bytes | None
    server_pin: str | None  # fingerprint
    roster_pins: frozenset[str] | None  # public keys or fingerprints
    authority: bytes | None = None  # the pinned CA's certificate, PEM

    @cached_property
    def report(self) -> Report:
        """The typed report; RunError if report.json has another shape."""
        return parse_report(self.report_bytes)

    @cached_property
    def signer(self) -> tuple[bytes, bytes]:
        """Public key and signature in report.sig; CheckFailedError unless as it is written."""
        if self.signature_bytes is None:
            raise CheckFailedError(f"{SIGNATURE_FILE} is missing")
        try:
            raw = json.loads(self.signature_bytes)
            key, signature = bytes.fromhex(raw["public_key"]), bytes.fromhex(raw["signature"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CheckFailedError(
                f"{SIGNATURE_FILE} does not hold a key and a signature"
            ) from None
        stored = canonical_signature({"public_key": key.hex(), "signature": signature.hex()})
        if stored != self.signature_bytes:
            raise CheckFailedError(f"{SIGNATURE_FILE} is not in the form it is written in")
        return key, signature

    @cached_property
    def opened(self) -> Open:
        """The first entry; CheckFailedError if it is of another kind."""
        if not self.entries or not isinstance(self.entries[0].body, Open):
            raise CheckFailedError("the ledger does not start with `open`")
        return self.entries[0].body

    @cached_property
    def closed(self) -> Close:
        """The last entry; CheckFailedError if it is of another kind."""
        if not self.entries or not isinstance(self.entries[-1].body, Close):
            raise CheckFailedError("the ledger does not end with `close`")
        return self.entries[-1].body

    @cached_property
    def config(self) -> Config:
        """The config of `open`, validated again; ConfigError names what is wrong."""
        return config_from_dict(self.opened.config, where="the ledger's config")

    @cached_property
    def server_key(self) -> bytes:
        """The key that `open` names as the server's."""
        return bytes.fromhex(self.opened.server_public_key)

    @cached_property
    def intents(self) -> list[tuple[LedgerEntry, Intent]]:
        """Every intent with its entry."""
        return [(entry, entry.body) for entry in self.entries if isinstance(entry.body, Intent)]

    @cached_property
    def releases(self) -> list[tuple[LedgerEntry, Intent, Release]]:
        """Every release with the intent it refers to; CheckFailedError if there is none."""
        intents = {entry.hash: (entry, intent) for entry, intent in self.intents}
        found = []
        for entry in self.entries:
            if isinstance(entry.body, Release):
                if entry.body.intent not in intents:
                    raise CheckFailedError(f"round {entry.body.round}: a release of no intent")
                found.append((*intents[entry.body.intent], entry.body))
        return found

    def count(self, kind: type) -> int:
        """How many entries have a body of this type."""
        return sum(isinstance(entry.body, kind) for entry in self.entries)

    @cached_property
    def events(self) -> list[Event]:
        """What was spent: every intent's event, whatever became of its round.

        CheckFailedError if they are not one mechanism: to price thousands would take days.
        """
        found = [intent.priced for _, intent in self.intents]
        if (kinds := len(set(found))) > 1:
            raise CheckFailedError(f"{kinds} mechanisms, a run has one: they are not priced")
        return found

    @cached_property
    def costs(self) -> dict[Row, RowSpend]:
        """The events priced anew against each adversary, by both accountants."""
        return spends(self.config, self.events)

    @cached_property
    def hypothetical_costs(self) -> dict[Row, RowSpend] | None:
        """What as many rounds cost in the world that the run pretends; None if it pretends none."""
        return hypothetical_spends(self.config, self.opened.dimension, len(self.events))


def gather(
    run_dir: Path,
    *,
    server_key: str | None,
    roster: Path | None,
    authority: Path | None = None,
) -> Evidence:
    """Read a finished run.

    RunError: no run here, a run that did not finish, a report of another format, bad pins.
    LedgerError: a ledger that is torn, unreadable or of another format.
    """
    pin = None if server_key is None else _hex(server_key, where="--server-key")
    pins = None if roster is None else read_roster(roster)
    if not run_dir.is_dir():
        raise RunError(f"{run_dir}: no such run directory; `fedattn simulate` makes one")
    ledger_path, report_path = run_dir / LEDGER_FILE, run_dir / REPORT_FILE
    if not ledger_path.exists():
        raise RunError(f"{run_dir}: not a run directory, {LEDGER_FILE} is missing")
    try:
        entries = read_ledger(ledger_path)
    except IMPOSSIBLE as error:
        kind = type(error).__name__
        raise LedgerError(f"{ledger_path}: has a value that no run has ({kind})") from None
    if not report_path.exists():
        raise RunError(_unfinished(run_dir, entries))
    signature_path = run_dir / SIGNATURE_FILE
    evidence = Evidence(
        run_dir=run_dir,
        entries=entries,
        report_bytes=_read(report_path),
        signature_bytes=_read(signature_path) if signature_path.exists() else None,
        server_pin=pin,
        roster_pins=pins,
        authority=None if authority is None else _read(authority),
    )
    _refuse_other_report(evidence.report_bytes, where=str(report_path))
    return evidence


def read_roster(path: Path) -> frozenset[str]:
    """Pinned device identities: one public key or fingerprint (64 hex digits) a line, # comments.

    RunError names a line that is neither, and an empty file.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise RunError(f"{path}: the roster cannot be read as UTF-8 text") from None
    found = set()
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            found.add(_hex(text, where=f"{path} line {number}"))
    if not found:
        raise RunError(f"{path}: the roster names no key")
    return frozenset(found)


def _hex(text: str, *, where: str) -> str:
    lowered = text.strip().lower()
    if not _HEX.match(lowered):
        raise RunError(f"{where}: must be 64 hex digits (`fedattn keys show` prints them)")
    return lowered


def is_pinned(public_key: bytes, pins: frozenset[str]) -> bool:
    """Whether a pin names this key, by itself or by its fingerprint."""
    return public_key.hex() in pins or fingerprint(public_key) in pins


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None


def _refuse_other_report(stored: bytes, *, where: str) -> None:
    try:
        stated = json.loads(stored)["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return  # of no format: the checks say what is wrong with it
    refuse_other(stated, where=where)


def _unfinished(run_dir: Path, entries: list[LedgerEntry]) -> str:
    partial = Evidence(run_dir, entries, b"", None, None, None)
    closed = isinstance(entries[-1].body, Close)
    state = "was closed but has no report" if closed else "did not finish"
    try:
        cost, rounds = partial.costs["outsider"], len(partial.intents)
        spent = (
            f"its ledger says that {rounds} round(s) spent epsilon {show_epsilon(cost.epsilon)} "
            f"against an outsider at delta {cost.delta:g} so far (not verified)"
        )
    except (CheckFailedError, FedattnError, *IMPOSSIBLE):
        spent = "what it spent cannot be read from its ledger"
    return (
        f"{run_dir}: the run {state}; {spent}. Go on with it by `--resume`, or count that as spent "
        "and start a new run"
    )
