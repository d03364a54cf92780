"""`fedattn audit`: whether a run's accounting is consistent, trusting pinned keys alone.

All checks run, each a numbered finding. Without a pinned server key anyone could have made the
run: integrity alone is found, and the verdict says so. A whole run made anew under another server
key *and* other devices' keys is consistent with itself; pins alone tell it from the real one.
Needs neither torch nor flwr.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedattn.audit.checks import CHECKS
from fedattn.audit.evidence import IMPOSSIBLE, CheckFailedError, gather, read_roster
from fedattn.audit.report_checks import is_page_compared
from fedattn.config import Row
from fedattn.errors import FedattnError
from fedattn.printable import printable
from fedattn.privacy.claims import (
    AS_IF_MASKED,
    HYPOTHETICAL,
    MASKS_SKIPPED,
    Claim,
    claims,
    labels,
)

if TYPE_CHECKING:
    from rich.table import Table

UNPINNED = "integrity only, signer unverified"
VERIFIED = "verified: signed by the pinned server key, accounting consistent"
_SKIPPED = (
    f"; {MASKS_SKIPPED}: no update was hidden from whoever ran it, every epsilon is {AS_IF_MASKED}"
)
NOT_COMPARED = "; report.html not compared"

__all__ = [
    "NOT_COMPARED",
    "UNPINNED",
    "VERIFIED",
    "AuditResult",
    "Finding",
    "audit",
    "audit_table",
    "read_roster",
]


@dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    number: int  # from 1, the same in every audit of this version
    check: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class AuditResult:
    """All findings, and what was spent as recomputed here (None where that was impossible)."""

    ok: bool
    verdict: str
    findings: tuple[Finding, ...]
    epsilon: float | None
    delta: float | None
    claims: tuple[Claim, ...]
    assumptions: tuple[str, ...]  # of the report: what no audit can see
    epsilons: Mapping[Row, float] | None  # by adversary row; `epsilon` is the outsider's
    hypothetical_epsilons: Mapping[Row, float] | None  # of the world a run pretends
    authority_held_by: str | None  # who certified the devices, as the server declares
    labels: tuple[str, ...]  # NOT PRIVATE, MASKS SKIPPED, HYPOTHETICAL, as the config demands
    secure_aggregation: str | None  # arithmetic: the run skipped the masks

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; infinity is the string "infinity"."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "findings": [vars(finding) for finding in self.findings],
            "epsilon": None if self.epsilon is None else _plain(self.epsilon),
            "epsilons": _plain_rows(self.epsilons),
            "hypothetical_epsilons": _plain_rows(self.hypothetical_epsilons),
            "delta": self.delta,
            "authority_held_by": self.authority_held_by,
            "labels": list(self.labels),
            "secure_aggregation": self.secure_aggregation,
            "assumptions": list(self.assumptions),
        }


def _plain(epsilon: float) -> float | str:
    return "infinity" if math.isinf(epsilon) else epsilon


def _plain_rows(epsilons: Mapping[Row, float] | None) -> dict[str, float | str] | None:
    return None if epsilons is None else {row: _plain(value) for row, value in epsilons.items()}


def audit(
    run_dir: Path,
    *,
    server_key: str | None = None,
    roster: Path | None = None,
    authority: Path | None = None,
) -> AuditResult:
    """Run every check on a finished run.

    What the auditor pinned: `server_key`, a fingerprint; `roster`, a file of device keys;
    `authority`, the certificate of the federation's CA.
    RunError or LedgerError if there is nothing to judge: no run, an unfinished one, one of
    another format, a torn or unreadable ledger, bad pins.
    """
    evidence = gather(run_dir, server_key=server_key, roster=roster, authority=authority)
    findings = []
    for number, (name, check) in enumerate(CHECKS, start=1):
        try:
            findings.append(Finding(number, name, True, check(evidence)))
        except (CheckFailedError, FedattnError) as reason:
            findings.append(Finding(number, name, False, str(reason)))
        except IMPOSSIBLE as error:
            kind = type(error).__name__  # (its own text may quote what is stored)
            findings.append(Finding(number, name, False, f"a value that no run has ({kind})"))
    failed = [finding for finding in findings if not finding.ok]
    if failed:
        verdict = "failed: " + ", ".join(f"{f.number} {f.check}" for f in failed)
    else:
        verdict = UNPINNED if server_key is None else VERIFIED
    epsilons: Mapping[Row, float] | None = None
    pretended: Mapping[Row, float] | None = None
    delta: float | None = None
    held_by: str | None = None
    loud: tuple[str, ...] = ()
    aggregation: str | None = None
    rows: tuple[Claim, ...] = ()
    stated: tuple[str, ...] = ()
    try:
        loud = labels(evidence.config)
        aggregation = evidence.config.secure_aggregation
        epsilons = {row: cost.epsilon for row, cost in evidence.costs.items()}
        delta = evidence.config.privacy.delta
        held_by = evidence.opened.authority_held_by
        rows = claims(evidence.config, evidence.events, held_by)
        if (costs := evidence.hypothetical_costs) is not None:
            pretended = {row: cost.epsilon for row, cost in costs.items()}
        stated = tuple(evidence.report.assumptions)
        if not is_page_compared(evidence):
            verdict += NOT_COMPARED
    except (CheckFailedError, FedattnError, *IMPOSSIBLE):
        pass  # a failed check has said why
    if aggregation == "arithmetic":
        verdict += _SKIPPED
    return AuditResult(
        ok=not failed,
        verdict=verdict,
        findings=tuple(findings),
        epsilon=None if epsilons is None else epsilons["outsider"],
        delta=delta,
        claims=rows,
        assumptions=stated,
        epsilons=epsilons,
        hypothetical_epsilons=pretended,
        authority_held_by=held_by,
        labels=loud,
        secure_aggregation=aggregation,
    )


def _held(result: AuditResult) -> list[str]:
    if result.authority_held_by is None:
        return []
    return [f"devices were certified by: {result.authority_held_by} (as the server declares)"]


def audit_table(result: AuditResult) -> Table:
    """The findings as a rich table, with the verdict below; what a file holds is safe to print."""
    from rich.table import Table
    from rich.text import Text

    pretends = any(label.startswith(HYPOTHETICAL) for label in result.labels)
    table = Table(
        title=f"Audit of a {HYPOTHETICAL} run" if pretends else "Audit",
        caption=Text("\n".join(map(printable, [*result.labels, *_held(result), result.verdict]))),
        caption_justify="left",
    )
    table.add_column("#", justify="right")
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("detail", overflow="fold")
    for finding in result.findings:
        mark = Text("ok", style="green") if finding.ok else Text("FAILED", style="bold red")
        table.add_row(str(finding.number), finding.check, mark, Text(printable(finding.detail)))
    return table
