"""`fedattn audit`: whether a run's accounting is consistent, trusting pinned keys alone.

All checks run, each a numbered finding. Without a pinned server key anyone could have made the
run: integrity alone is found, and the verdict says so. A whole run made anew under another server
key *and* other devices' keys is consistent with itself; pins alone tell it from the real one.
Needs neither torch nor flwr.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedattn.audit.checks import CHECKS
from fedattn.audit.evidence import CheckFailedError, gather, read_roster
from fedattn.errors import FedattnError
from fedattn.privacy.claims import Claim, claims

if TYPE_CHECKING:
    from rich.table import Table

UNPINNED = "integrity only, signer unverified"
VERIFIED = "verified: signed by the pinned server key, accounting consistent"

__all__ = ["UNPINNED", "VERIFIED", "AuditResult", "Finding", "audit", "audit_table", "read_roster"]


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

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; infinity is the string "infinity"."""
        shown = (
            "infinity" if self.epsilon is not None and math.isinf(self.epsilon) else self.epsilon
        )
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "findings": [vars(finding) for finding in self.findings],
            "epsilon": shown,
            "delta": self.delta,
            "assumptions": list(self.assumptions),
        }


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
    RunError or LedgerError if there is nothing to judge: no run, an unfinished or newer one, a
    torn or unreadable ledger, bad pins.
    """
    evidence = gather(run_dir, server_key=server_key, roster=roster, authority=authority)
    findings = []
    for number, (name, check) in enumerate(CHECKS, start=1):
        try:
            findings.append(Finding(number, name, True, check(evidence)))
        except (CheckFailedError, FedattnError) as reason:
            findings.append(Finding(number, name, False, str(reason)))
    failed = [finding for finding in findings if not finding.ok]
    if failed:
        verdict = "failed: " + ", ".join(f"{f.number} {f.check}" for f in failed)
    else:
        verdict = UNPINNED if server_key is None else VERIFIED
    epsilon: float | None = None
    delta: float | None = None
    rows: tuple[Claim, ...] = ()
    stated: tuple[str, ...] = ()
    try:
        epsilon, delta = evidence.cost.epsilon, evidence.cost.delta
        rows = claims(evidence.config, evidence.events)
        stated = tuple(evidence.report.assumptions)
    except (CheckFailedError, FedattnError):
        pass  # a failed check has said why
    return AuditResult(not failed, verdict, tuple(findings), epsilon, delta, rows, stated)


def audit_table(result: AuditResult) -> Table:
    """The findings as a rich table, with the verdict below."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Audit", caption=Text(result.verdict), caption_justify="left")
    table.add_column("#", justify="right")
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("detail", overflow="fold")
    for finding in result.findings:
        mark = Text("ok", style="green") if finding.ok else Text("FAILED", style="bold red")
        table.add_row(str(finding.number), finding.check, mark, Text(finding.detail))
    return table
