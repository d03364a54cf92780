"""The numbered checks of an audit, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedattn.audit import cost_checks as cost
from fedattn.audit import ledger_checks as ledger
from fedattn.audit import report_checks as report
from fedattn.audit.evidence import Evidence

CHECKS: Sequence[tuple[str, Callable[[Evidence], str]]] = (
    ("files present", report.files_present),
    ("report signature", report.report_signature),
    ("server key", ledger.server_key),
    ("ledger signatures", ledger.ledger_signatures),
    ("ledger chain", ledger.ledger_chain),
    ("report matches ledger", report.report_matches_ledger),
    ("ledger grammar", ledger.grammar),
    ("config", report.config),
    ("events", ledger.events),
    ("cohorts", ledger.cohorts),
    ("client sampling", ledger.client_sampling),
    ("participations", ledger.participations),
    ("instructions", ledger.instructions),
    ("survivors", ledger.survivors),
    ("certificates", ledger.certificates),
    ("co-signatures", ledger.cosignatures),
    ("models", report.models),
    ("epsilon", cost.epsilon),
    ("rounds", cost.rounds),
    ("hypothetical", cost.hypothetical),
    ("budget and delta", cost.budget),
    ("claims", cost.claims_hold),
    ("NOT PRIVATE labels", report.not_private_labels),
    ("masks", report.masks),
    ("assumptions and caveats", report.sentences),
    ("quality", report.quality),
    ("report page", report.page),
)
