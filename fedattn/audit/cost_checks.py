"""Checks on what a report says the run cost: every epsilon is recomputed from the ledger.

Each returns its detail or raises CheckFailedError with what it found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedattn.audit.evidence import Evidence, require, same_sentences
from fedattn.config import Row
from fedattn.privacy.claims import (
    HYPOTHETICAL,
    Claim,
    adjacency,
    claims,
    hypothetical_claims,
    labels,
    show_epsilon,
)
from fedattn.privacy.rows import RowSpend
from fedattn.report import round_sections
from fedattn.report.shape import Accountants, ClaimSection, RoundSection

_RELATIVE = 1e-6  # two machines' floating point may differ by this in a recomputed epsilon


def epsilon(e: Evidence) -> str:
    """Every epsilon, recomputed from all intents by both accountants, is the stored one."""
    totals, costs = e.report.totals, e.costs
    _same("total", totals.epsilon, costs["outsider"].epsilon)
    _same("delta", totals.delta, e.config.privacy.delta)
    _same_rows("", totals.epsilons, e.report.accountants, costs)
    shown = ", ".join(f"{row} {show_epsilon(cost.epsilon)}" for row, cost in costs.items())
    return f"epsilon against {shown}, at delta {totals.delta:g}, by both accountants"


def rounds(e: Evidence) -> str:
    """Round by round the report tells what the ledger does, and what it had cost by then."""
    e.events  # noqa: B018 (raises unless they are one mechanism)
    wanted = round_sections(e.config, e.entries)
    require(
        [each.number for each in e.report.rounds] == [each.number for each in wanted],
        "other rounds than the ledger's",
    )
    for found, right in zip(e.report.rounds, wanted, strict=True):
        name = f"round {right.number}"
        require(
            _participation(found) == _participation(right),
            f"{name}: not the outcome, clients, survivors and dropouts of the ledger",
        )
        _same_cost(name, found.epsilons, right.epsilons)
        _same_cost(
            f"{name} {HYPOTHETICAL}", found.hypothetical_epsilons, right.hypothetical_epsilons
        )
    return f"{len(wanted)} rounds, each with what was spent by then"


def hypothetical(e: Evidence) -> str:
    """A run that pretends a larger cohort shows what it pretends, priced anew, and says so."""
    stated, costs = e.report.hypothetical, e.hypothetical_costs
    wanted = e.config.privacy.hypothetical
    if stated is None or wanted is None or costs is None:
        require(
            stated is None and wanted is None, "a hypothetical section, or none, against config"
        )
        return "nothing is pretended"
    require(
        (stated.cohort, stated.population) == (wanted.cohort, wanted.population),
        f"{stated.cohort} of {stated.population} clients, config: "
        f"{wanted.cohort} of {wanted.population}",
    )
    _same_rows("hypothetical ", stated.epsilons, stated.accountants, costs)
    rows = hypothetical_claims(e.config, e.opened.dimension, len(e.events))
    _same_claims(stated.claims, rows, "hypothetical claim")
    label = next(line for line in labels(e.config) if line.startswith(HYPOTHETICAL))
    require(label in e.report.notes, f"notes: missing “{label}”")
    shown = ", ".join(f"{row} {show_epsilon(cost.epsilon)}" for row, cost in costs.items())
    return f"{HYPOTHETICAL}, {wanted.cohort} of {wanted.population} clients: {shown}"


def budget(e: Evidence) -> str:
    """No budget was passed, and delta is at most 1/(10 max_units)."""
    privacy = e.config.privacy
    budgets = privacy.budgets
    require(e.report.totals.budgets == budgets, "other budgets are reported than the config's")
    if not budgets:
        return "no budget: nothing is protected"
    limit = 1 / (10 * privacy.max_units)
    require(privacy.delta <= limit, f"delta {privacy.delta:g} is above 1/(10 U) = {limit:g}")
    costs = e.costs if e.hypothetical_costs is None else e.hypothetical_costs
    for row, most in budgets.items():
        spent = costs[row].epsilon
        require(spent <= most, f"{row}: spent {spent:.6g} of {most:g}")
    shown = ", ".join(
        f"{row} {show_epsilon(costs[row].epsilon)} of {most:g}" for row, most in budgets.items()
    )
    pretended = "" if e.hypothetical_costs is None else f"{HYPOTHETICAL}: "
    return f"{pretended}{shown}; delta at most {limit:g}"


def claims_hold(e: Evidence) -> str:
    """Each adversary's row is what config and events allow to claim, no more."""
    wanted = claims(e.config, e.events, e.opened.authority_held_by)
    _same_claims(e.report.claims, wanted, "claim")
    require(e.report.adjacency == adjacency(e.config), "another adjacency than the config's")
    return f"{len(wanted)} adversaries, unit {e.config.privacy.unit}"


def _same_rows(
    what: str,
    epsilons: Mapping[Row, float],
    accountants: Accountants,
    costs: Mapping[Row, RowSpend],
) -> None:
    require(set(epsilons) == set(costs), f"{what}epsilons: other rows than the four")
    for row, cost in costs.items():
        _same(f"{what}{row}", epsilons[row], cost.epsilon)
    ours = costs["outsider"].accountants
    require(set(accountants) == set(ours), f"{what}accountants: other ones than {', '.join(ours)}")
    for name, bounds in ours.items():
        for which in ("lower", "estimate", "upper"):
            stored, recomputed = getattr(accountants[name], which), getattr(bounds, which)
            _same(f"{what}{name} {which}", stored, recomputed)


def _participation(told: RoundSection) -> tuple[object, ...]:
    return told.outcome, told.contacted, told.survivors, told.dropouts


def _same_cost(
    what: str, stated: Mapping[Row, float] | None, wanted: Mapping[Row, float] | None
) -> None:
    if stated is None or wanted is None:
        require(stated is wanted, f"{what}: priced, or not, against the ledger's length")
        return
    require(set(stated) == set(wanted), f"{what}: other rows than the four")
    for row, value in wanted.items():
        _same(f"{what}, {row}", stated[row], value)


def _same(what: str, stored: float, recomputed: float) -> None:
    require(_close(stored, recomputed), f"{what}: stored {stored:.8g}, is {recomputed:.8g}")


def _same_claims(stated: Sequence[ClaimSection], wanted: Sequence[Claim], what: str) -> None:
    require(
        [(row.row, row.adversary) for row in stated]
        == [(row.row, row.adversary) for row in wanted],
        f"{what}: other adversaries than the four rows",
    )
    for found, allowed in zip(stated, wanted, strict=True):
        who = f"{what} against {allowed.adversary}"
        require(_close(found.epsilon, allowed.epsilon), f"{who}: epsilon {found.epsilon:.8g}")
        require(_close(found.delta, allowed.delta), f"{who}: delta {found.delta:.8g}")
        require(_close(found.failures, allowed.failures), f"{who}: failures {found.failures:.8g}")
        require(found.unit == allowed.unit, f"{who}: unit {found.unit}, not {allowed.unit}")
        same_sentences(found.assumptions, allowed.assumptions, who)


def _close(found: float, recomputed: float) -> bool:
    return found == recomputed or math.isclose(found, recomputed, rel_tol=_RELATIVE)
