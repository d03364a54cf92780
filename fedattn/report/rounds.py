"""The rounds of a run, one by one, as its ledger tells them, and what they cost so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from fedattn.config import ROWS, Config, Row
from fedattn.entries import Abort, Intent, Open, Release, Skip
from fedattn.errors import PrivacyError, RunError
from fedattn.ledger import LedgerEntry
from fedattn.mechanism import hypothetical_world
from fedattn.privacy.events import Event, round_event
from fedattn.privacy.rows import row_spend
from fedattn.report.shape import RoundSection, problems

MOST_PRICED = 16  # of a longer run some rounds alone are priced: pricing all would take minutes


def round_sections(config: Config, entries: Sequence[LedgerEntry]) -> list[RoundSection]:
    """Every round of a ledger that starts with `open`, in order.

    A round that was cut off is `unfinished`: spent, without an outcome. At most MOST_PRICED rounds
    are priced, evenly spread, the last one always. A cost that the accountants refuse to bound is
    infinite. Where clients are sampled, who reads a report must not learn how many were drawn:
    outsiders do, and their epsilon is amplified by that secret. RunError for numbers that no run
    has.
    """
    try:
        return _sections(config, entries)
    except ValidationError as error:
        raise RunError(f"the ledger's rounds: {problems(error)}") from None


def _sections(config: Config, entries: Sequence[LedgerEntry]) -> list[RoundSection]:
    bodies = [entry.body for entry in entries]
    ends = {body.intent: body for body in bodies if isinstance(body, Release | Abort)}
    events = [body.priced for body in bodies if isinstance(body, Intent)]
    priced, is_secret = _priced(len(events)), config.privacy.client_rate < 1
    sections, spent = [], 0
    for entry in entries:
        body = entry.body
        if isinstance(body, Skip):
            nobody = None if is_secret else 0
            sections.append(RoundSection(number=body.round, outcome="skipped", contacted=nobody))
        if isinstance(body, Intent):
            spent += 1
            section = _told(body, ends.get(entry.hash), is_secret=is_secret)
            if spent in priced:
                costs = {
                    "epsilons": _costs(config, events[:spent]),
                    "hypothetical_epsilons": _pretended(config, bodies[0], spent),
                }
                section = section.model_copy(update=costs)
            sections.append(section)
    return sections


def _told(intent: Intent, end: Release | Abort | None, *, is_secret: bool) -> RoundSection:
    """What the ledger says of one round, without its cost; without its counts if `is_secret`."""
    outcome: Literal["released", "aborted", "unfinished"] = "unfinished"
    if end is not None:
        outcome = "released" if isinstance(end, Release) else "aborted"
    if is_secret:
        return RoundSection(number=intent.round, outcome=outcome)
    if not isinstance(end, Release):
        return RoundSection(number=intent.round, outcome=outcome, contacted=intent.cohort)
    released = min(end.survivors, intent.cohort)
    return RoundSection(
        number=intent.round,
        outcome=outcome,
        contacted=intent.cohort,
        survivors=released,
        dropouts=intent.cohort - released,
    )


def _priced(count: int) -> frozenset[int]:
    """Which of rounds 1..count that spent something are priced."""
    stride = -(-count // MOST_PRICED) or 1
    return frozenset(range(count, 0, -stride))


def _costs(config: Config, events: Sequence[Event]) -> dict[Row, float]:
    return {row: _cost(config, events, row) for row in ROWS}


def _cost(config: Config, events: Sequence[Event], row: Row) -> float:
    try:
        return row_spend(config, events, row).epsilon
    except PrivacyError:
        return float("inf")  # nothing bounds it; what the whole run cost is in the totals


def _pretended(config: Config, opened: object, rounds: int) -> dict[Row, float] | None:
    world = hypothetical_world(config)
    if world is None or not isinstance(opened, Open):
        return None
    return _costs(world, [round_event(world, opened.dimension)] * rounds)
