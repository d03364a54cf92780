"""Checks on the report: that it says what the ledger, the config and the files say.

Each returns its detail or raises CheckFailedError with what it found.
"""

from __future__ import annotations

import hashlib
import json
import math

from fedattn.audit.evidence import CheckFailedError, Evidence, require, same_sentences
from fedattn.durable import read_regular
from fedattn.entries import (
    SIMULATED,
    SIMULATION,
    Abort,
    Intent,
    Release,
    Resume,
    Skip,
)
from fedattn.privacy.claims import (
    MASKS_SKIPPED,
    NOT_PRIVATE,
    assumptions,
    caveats,
    labels,
)
from fedattn.privacy.masks import masks_label
from fedattn.protocol import EXAMPLES, PROTOCOL, other_key, other_shape
from fedattn.report import (
    HTML_FILE,
    PURPOSE,
    SIGNATURE_FILE,
    page_sha256,
    render_html,
)
from fedattn.signing import fingerprint, verify
from fedattn.start import stated_architecture


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
    held_by = e.opened.authority_held_by
    require(report.authority_held_by == held_by, f"the ledger says that {held_by} certified")
    require(report.resumes == e.count(Resume), f"{report.resumes} resumes, the ledger has others")
    totals = report.totals
    counts = (
        totals.rounds_intended,
        totals.rounds_released,
        totals.rounds_aborted,
        totals.rounds_skipped,
    )
    wanted = (len(e.intents), e.count(Release), e.count(Abort), e.count(Skip))
    require(
        counts == wanted, f"rounds intended, released, aborted, skipped: {counts}, not {wanted}"
    )
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
    """Each round starts from the model before it, a resumed run from the last release's.

    So no update was applied twice. The file on disk is the one reported.
    """
    current = e.opened.model_sha256
    for entry in e.entries:
        body = entry.body
        if isinstance(body, Intent | Release):
            name = f"{entry.kind} of round {body.round}"
            require(body.model_before == current, f"{name} does not start from the model before")
        if isinstance(body, Resume):
            require(body.model == current, "a resume does not go on from the last release")
        if isinstance(body, Release):
            current = body.model_after
    stated = e.report.model
    require(e.closed.model_sha256 == current, "`close` names another model than the last release")
    require(stated.start_sha256 == e.opened.model_sha256, "the report starts from another model")
    require(stated.final_sha256 == current, "the report ends with another model")
    found = hashlib.sha256(_model_file(e)).hexdigest()
    require(found == stated.file_sha256, f"{stated.file} is not the file that was reported")
    return f"{stated.file} {found}"


def _model_file(e: Evidence) -> bytes:
    try:
        return read_regular(e.run_dir / e.report.model.file)
    except OSError:
        raise CheckFailedError(f"{e.report.model.file} cannot be read") from None


def not_private_labels(e: Evidence) -> str:
    """A run without noise or with a seed says NOT PRIVATE; a private one has no need to."""
    wanted = [line for line in labels(e.config) if line.startswith(NOT_PRIVATE)]
    loud = [note for note in e.report.notes if note.startswith(NOT_PRIVATE)]
    same_sentences(loud, wanted, "notes")
    if not wanted:
        require(e.config.is_private, "no label, and yet not private")
        return "none needed"
    for row in e.report.claims:
        require(math.isinf(row.epsilon), f"a finite claim against {row.adversary}")
        require(any(NOT_PRIVATE in line for line in row.assumptions), "a claim without the label")
    return "; ".join(line.partition(" - ")[0] for line in wanted)


def masks(e: Evidence) -> str:
    """Whether masks hid each update is stated in ledger, report and every row; else a simulation.

    Nobody may rely on what was skipped: a run of devices that are not simulated has masks.
    """
    kind = e.config.secure_aggregation
    require(e.opened.secure_aggregation == kind, f"the ledger's `open` says otherwise than {kind}")
    require(e.report.secure_aggregation == kind, f"the report says otherwise than {kind}")
    wanted = masks_label(e.config)
    loud = [note for note in e.report.notes if note.startswith(MASKS_SKIPPED)]
    require(loud == list(wanted), f"notes: {len(loud)} say {MASKS_SKIPPED}, need {len(wanted)}")
    if kind == "masked":
        return "none skipped, as config, ledger and report say"
    made = (e.opened.authority_held_by, e.opened.created_by)
    require(
        made == (SIMULATION, SIMULATED),
        f"{MASKS_SKIPPED} in a run that is no simulation: created by {made[1]!r}, authority held "
        f"by {made[0]!r}",
    )
    return f"{wanted[0]} (created by {made[1]}, authority held by {made[0]})"


def sentences(e: Evidence) -> str:
    """Assumptions, caveats and notes are those that the config demands, none less and none more."""
    held_by = e.opened.authority_held_by
    same_sentences(e.report.assumptions, assumptions(e.config, held_by), "assumptions")
    same_sentences(e.report.caveats, caveats(e.config, held_by), "caveats")
    same_sentences(e.report.notes, labels(e.config), "notes")
    return f"{len(e.report.assumptions)} assumptions, {len(e.report.caveats)} caveats"


def quality(e: Evidence) -> str:
    """Quality is told of released rounds, and of the frozen protocol only where it can be.

    Whether the figures are those of the models is the server's word: an audit runs no model.
    """
    told = e.report.quality
    released = {release.round for _, _, release in e.releases}
    measured = [point.round for point in told.validation]
    require(
        measured == sorted(released.intersection(measured)),
        "validation: a round that released nothing, one told twice, or out of order",
    )
    if told.protocol is None:
        return "the server's word; not of the frozen protocol"
    key = other_key(e.config)
    require(key is None, f"names {PROTOCOL}, which is of another {key}")
    require(told.examples == EXAMPLES, f"names {PROTOCOL}, which is of {EXAMPLES} replies")
    shape = stated_architecture(_model_file(e))
    require(shape is not None, f"names {PROTOCOL}, and {e.report.model.file} states no shape")
    key = None if shape is None else other_shape(shape)
    require(key is None, f"names {PROTOCOL}, which is of another {key} than its model")
    return f"the server's word, on the replies of {PROTOCOL}"


def is_page_compared(e: Evidence) -> bool:
    """Whether report.html was rendered by the same code and libraries as are here."""
    return e.report.page_sha256 == page_sha256()


def page(e: Evidence) -> str:
    """report.html shows what report.json says."""
    if not is_page_compared(e):
        return (
            "not compared: rendered by another version of fedattn or its libraries; trust "
            "report.json"
        )
    try:
        stored = read_regular(e.run_dir / HTML_FILE)
    except OSError:
        raise CheckFailedError(f"{HTML_FILE} cannot be read") from None
    require(stored == render_html(e.report).encode(), f"{HTML_FILE} was changed; read report.json")
    return "rendered again, equal"


def _within(stored: object, read: object) -> bool:
    if isinstance(stored, dict) and isinstance(read, dict):
        return all(key in read and _within(value, read[key]) for key, value in stored.items())
    return stored == read
