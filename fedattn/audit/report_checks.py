"""Checks on the report: that it says what the ledger, the config and the files say.

Each returns its detail or raises CheckFailedError with what it found.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable

from fedattn.audit.evidence import CheckFailedError, Evidence, require
from fedattn.entries import Abort, Intent, Release
from fedattn.privacy.claims import NOT_PRIVATE, assumptions, caveats, claims, labels
from fedattn.report import (
    HTML_FILE,
    PURPOSE,
    SIGNATURE_FILE,
    render_html,
    show_epsilon,
    template_sha256,
)
from fedattn.signing import fingerprint, verify

_RELATIVE = 1e-6  # two machines' floating point may differ by this in a recomputed epsilon


def files_present(e: Evidence) -> str:
    """Signature, page and model lie beside ledger and report."""
    wanted = [SIGNATURE_FILE, HTML_FILE, e.report.model.file]
    missing = [name for name in wanted if not (e.run_dir / name).is_file()]
    require(not missing, f"missing: {', '.join(missing)}")
    return "ledger, report, signature, page and model are there"


def report_signature(e: Evidence) -> str:
    """The stored bytes of report.json verify under the key in report.sig."""
    key, signature = e.signer
    require(
        verify(key, PURPOSE, e.report_bytes, signature), "report.json was changed or not signed"
    )
    return f"signed by {fingerprint(key)}"


def report_matches_ledger(e: Evidence) -> str:
    """Head, length, outcome and totals in the report are those of the ledger."""
    report, stated = e.report, e.report.ledger
    require(
        stated.entries == len(e.entries),
        f"the report closes {stated.entries} entries, the ledger has {len(e.entries)}",
    )
    require(stated.head == e.entries[-1].hash, "the ledger's last line is not the report's head")
    require(report.outcome == e.closed.outcome, "another outcome than the ledger's")
    require(report.data_set == e.opened.data_set, "another data set than the ledger's")
    totals = report.totals
    counts = (totals.rounds_intended, totals.rounds_released, totals.rounds_aborted)
    wanted = (len(e.intents), e.count(Release), e.count(Abort))
    require(counts == wanted, f"rounds intended, released, aborted: {counts}, not {wanted}")
    return f"{len(e.entries)} entries, outcome {report.outcome}"


def config(e: Evidence) -> str:
    """Ledger and report state one config, valid today, under its own hash."""
    stored = e.opened.config
    canonical = json.dumps(stored, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    require(digest == e.opened.config_sha256, "the ledger's config has another hash than stated")
    require(digest == e.report.config_sha256, "the report states another config hash")
    require(e.report.config == stored, "the report's config is not the ledger's")
    as_read = e.config.model_dump(mode="json")  # may hold keys that are newer than the run
    require(_within(stored, as_read), "the stored config is read as another one")
    require(e.report.totals.rounds_planned == e.config.train.rounds, "other rounds were planned")
    return digest


def models(e: Evidence) -> str:
    """Each round starts from the model before it; the file on disk is the one reported."""
    current = e.opened.model_sha256
    for entry in e.entries:
        body = entry.body
        if isinstance(body, Intent | Release):
            name = f"{entry.kind} of round {body.round}"
            require(body.model_before == current, f"{name} does not start from the model before")
        if isinstance(body, Release):
            current = body.model_after
    stated = e.report.model
    require(e.closed.model_sha256 == current, "`close` names another model than the last release")
    require(stated.start_sha256 == e.opened.model_sha256, "the report starts from another model")
    require(stated.final_sha256 == current, "the report ends with another model")
    try:
        stored = (e.run_dir / stated.file).read_bytes()
    except OSError:
        raise CheckFailedError(f"{stated.file} cannot be read") from None
    found = hashlib.sha256(stored).hexdigest()
    require(found == stated.file_sha256, f"{stated.file} is not the file that was reported")
    return f"{stated.file} {found}"


def epsilon(e: Evidence) -> str:
    """Every epsilon, recomputed from all intents by both accountants, is the stored one."""
    totals, stated, cost = e.report.totals, e.report.accountants, e.cost
    pairs = [("total", totals.epsilon, cost.epsilon), ("delta", totals.delta, cost.delta)]
    for name, ours, theirs in (("pld", cost.pld, stated.pld), ("prv", cost.prv, stated.prv)):
        pairs += [
            (f"{name} lower", theirs.lower, ours.lower),
            (f"{name} estimate", theirs.estimate, ours.estimate),
            (f"{name} upper", theirs.upper, ours.upper),
        ]
    for name, found, recomputed in pairs:
        require(_close(found, recomputed), f"{name}: stored {found:.8g}, is {recomputed:.8g}")
    return f"epsilon {show_epsilon(cost.epsilon)} at delta {cost.delta:g} by both accountants"


def budget(e: Evidence) -> str:
    """The budget was not passed, and delta is at most 1/(10 max_units)."""
    privacy = e.config.privacy
    require(e.report.totals.epsilon_budget == privacy.epsilon_budget, "another budget is reported")
    if privacy.epsilon_budget is None:
        return "no budget: nothing is protected"
    limit = 1 / (10 * privacy.max_units)
    require(privacy.delta <= limit, f"delta {privacy.delta:g} is above 1/(10 U) = {limit:g}")
    spent = e.cost.epsilon
    require(spent <= privacy.epsilon_budget, f"spent {spent:.6g} of {privacy.epsilon_budget:g}")
    return f"{show_epsilon(spent)} of {privacy.epsilon_budget:g}; delta at most {limit:g}"


def claims_hold(e: Evidence) -> str:
    """Each adversary's row is what config and events allow to claim, no more."""
    wanted, stated = claims(e.config, e.events), e.report.claims
    require(
        [row.adversary for row in stated] == [row.adversary for row in wanted],
        "other adversaries than the four rows",
    )
    for found, allowed in zip(stated, wanted, strict=True):
        who = f"claim against {allowed.adversary}"
        require(_close(found.epsilon, allowed.epsilon), f"{who}: epsilon {found.epsilon:.8g}")
        require(_close(found.delta, allowed.delta), f"{who}: delta {found.delta:.8g}")
        require(found.unit == allowed.unit, f"{who}: unit {found.unit}, not {allowed.unit}")
        _contains(found.assumptions, allowed.assumptions, who)
    return f"{len(wanted)} adversaries, unit {e.config.privacy.unit}"


def not_private_labels(e: Evidence) -> str:
    """A run without noise or with a seed says NOT PRIVATE; a private one has no need to."""
    wanted = labels(e.config)
    _contains(e.report.notes, wanted, "notes")
    if not wanted:
        require(e.config.is_private, "no label, and yet not private")
        return "none needed"
    for row in e.report.claims:
        require(math.isinf(row.epsilon), f"a finite claim against {row.adversary}")
        require(any(NOT_PRIVATE in line for line in row.assumptions), "a claim without the label")
    return "; ".join(line.partition(" - ")[0] for line in wanted)


def sentences(e: Evidence) -> str:
    """Assumptions and caveats that the config demands are all there."""
    _contains(e.report.assumptions, assumptions(e.config), "assumptions")
    _contains(e.report.caveats, caveats(e.config), "caveats")
    return f"{len(e.report.assumptions)} assumptions, {len(e.report.caveats)} caveats"


def page(e: Evidence) -> str:
    """report.html shows what report.json says."""
    if e.report.page_template_sha256 != template_sha256():
        return "not compared: rendered with another version's template; trust report.json"
    try:
        stored = (e.run_dir / HTML_FILE).read_bytes()
    except OSError:
        raise CheckFailedError(f"{HTML_FILE} cannot be read") from None
    require(stored == render_html(e.report).encode(), f"{HTML_FILE} was changed; read report.json")
    return "rendered again, equal"


def _contains(stated: Iterable[str], wanted: Iterable[str], where: str) -> None:
    missing = set(wanted) - set(stated)
    require(not missing, f"{where}: missing “{min(missing, default='')}”")


def _close(found: float, recomputed: float) -> bool:
    return found == recomputed or math.isclose(found, recomputed, rel_tol=_RELATIVE)


def _within(stored: object, read: object) -> bool:
    if isinstance(stored, dict) and isinstance(read, dict):
        return all(key in read and _within(value, read[key]) for key, value in stored.items())
    return stored == read
