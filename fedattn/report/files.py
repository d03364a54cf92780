"""A report is built from a closed ledger, signed, written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import fedattn
from fedattn.config import Config, Row, config_from_dict
from fedattn.durable import read_regular, write_durably
from fedattn.entries import Abort, Close, Intent, Open, Release, Resume, Skip
from fedattn.errors import RunError
from fedattn.ledger import LedgerEntry
from fedattn.privacy.claims import (
    adjacency,
    assumptions,
    caveats,
    claims,
    hypothetical_claims,
    labels,
)
from fedattn.privacy.rows import RowSpend, hypothetical_spends, spends
from fedattn.report.html import page_sha256, render_html
from fedattn.report.rounds import round_sections
from fedattn.report.shape import (
    Accountants,
    BoundsSection,
    ClaimSection,
    HypotheticalSection,
    LedgerSection,
    ModelSection,
    Quality,
    Report,
    Sample,
    Totals,
    parse_report,
    problems,
)
from fedattn.signing import SigningKey

PURPOSE = b"fedattn/v1/report"
LEDGER_FILE = "ledger.jsonl"
REPORT_FILE, SIGNATURE_FILE, HTML_FILE = "report.json", "report.sig", "report.html"


def build_report(
    entries: Sequence[LedgerEntry],
    *,
    quality: Mapping[str, Any],
    model_file: str,
    model_file_sha256: str,
    samples: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """The report of a closed ledger: everything but quality, samples and file comes from it.

    Its notes are the labels NOT PRIVATE, MASKS SKIPPED, HYPOTHETICAL, as the config demands.
    RunError unless the ledger starts with `open` and ends with `close`, or if a part has another
    shape than `Quality` and `Sample`.
    """
    bodies = [entry.body for entry in entries]
    if not (bodies and isinstance(bodies[0], Open) and isinstance(bodies[-1], Close)):
        raise RunError("a report needs a ledger from `open` to `close`; close the ledger first")
    opened, closed = bodies[0], bodies[-1]
    config = config_from_dict(opened.config)
    events = [body.priced for body in bodies if isinstance(body, Intent)]
    costs, held_by = spends(config, events), opened.authority_held_by
    try:
        return Report(
            fedattn_version=fedattn.__version__,
            created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            config=opened.config,
            config_sha256=opened.config_sha256,
            page_sha256=page_sha256(),
            data_set=opened.data_set,
            outcome=closed.outcome,
            authority_held_by=held_by,
            secure_aggregation=config.secure_aggregation,
            resumes=sum(isinstance(body, Resume) for body in bodies),
            totals=Totals(
                rounds_planned=config.train.rounds,
                rounds_intended=len(events),
                rounds_released=sum(isinstance(body, Release) for body in bodies),
                rounds_aborted=sum(isinstance(body, Abort) for body in bodies),
                rounds_skipped=sum(isinstance(body, Skip) for body in bodies),
                epsilon=costs["outsider"].epsilon,
                epsilons={row: cost.epsilon for row, cost in costs.items()},
                delta=config.privacy.delta,
                budgets=config.privacy.budgets,
            ),
            accountants=_accountants(costs),
            adjacency=adjacency(config),
            claims=[ClaimSection.of(claim) for claim in claims(config, events, held_by)],
            hypothetical=_hypothetical(config, opened.dimension, len(events)),
            rounds=round_sections(config, entries),
            model=ModelSection(
                start_sha256=opened.model_sha256,
                final_sha256=closed.model_sha256,
                file=model_file,
                file_sha256=model_file_sha256,
            ),
            quality=Quality.model_validate(dict(quality)),
            samples=[Sample.model_validate(dict(sample)) for sample in samples],
            ledger=LedgerSection(
                entries=len(entries),
                head=entries[-1].hash,
                server_public_key=opened.server_public_key,
            ),
            assumptions=list(assumptions(config, held_by)),
            caveats=list(caveats(config, held_by)),
            notes=list(labels(config)),
        )
    except ValidationError as error:
        raise RunError(f"report: {problems(error)}") from None


def _accountants(costs: Mapping[Row, RowSpend]) -> Accountants:
    return {name: BoundsSection.of(each) for name, each in costs["outsider"].accountants.items()}


def _hypothetical(config: Config, dimension: int, rounds: int) -> HypotheticalSection | None:
    wanted = config.privacy.hypothetical
    costs = hypothetical_spends(config, dimension, rounds)
    if wanted is None or costs is None:
        return None
    rows = hypothetical_claims(config, dimension, rounds)
    return HypotheticalSection(
        cohort=wanted.cohort,
        population=wanted.population,
        epsilons={row: cost.epsilon for row, cost in costs.items()},
        claims=[ClaimSection.of(claim) for claim in rows],
        accountants=_accountants(costs),
    )


def write_report(run_dir: Path, report: Report, key: SigningKey) -> None:
    """Write report.html, report.sig and, last, report.json; RunError if there is a report.

    Each is whole or absent, and with report.json all are there: what a killed writer left of the
    other two is written anew.
    """
    if (run_dir / REPORT_FILE).exists():
        raise RunError(f"{run_dir / REPORT_FILE}: exists; a report is never overwritten")
    stored = report.to_bytes()
    signature = {
        "public_key": key.public_bytes.hex(),
        "signature": key.sign(PURPOSE, stored).hex(),
    }
    as_read = parse_report(stored)  # keys in stored order: an audit renders the same page
    write_durably(run_dir / HTML_FILE, render_html(as_read).encode())
    write_durably(run_dir / SIGNATURE_FILE, canonical_signature(signature))
    write_durably(run_dir / REPORT_FILE, stored)


def canonical_signature(raw: Mapping[str, str]) -> bytes:
    """The one stored form of report.sig."""
    return json.dumps(raw, sort_keys=True).encode() + b"\n"


def read_report(run_dir: Path) -> Report:
    """The report in `run_dir`; its signature is the audit's to check.

    RunError tells apart: no report, another format, another shape.
    """
    path = run_dir / REPORT_FILE
    try:
        stored = read_regular(path)
    except FileNotFoundError:
        if not (run_dir / LEDGER_FILE).is_file():
            raise RunError(
                f"{run_dir}: not a run; it has neither {LEDGER_FILE} nor {REPORT_FILE}. "
                "`fedattn simulate` prints where a run is"
            ) from None
        raise RunError(
            f"{path}: no report; the run did not finish. `fedattn simulate --resume` goes on with "
            "a simulation"
        ) from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_report(stored, where=str(path))
