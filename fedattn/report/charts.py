"""The three charts of a report: epsilon, participation and quality, over the rounds.

Drawn by pygal as SVG that the page contains: text stays text, colours are the page's. What its
stylesheet draws hangs on class names: `row-OUTSIDER` and so on, `budget`, `answered`, `dropped`,
`nothing`, `bpb`. The same report gives the same bytes; no text of a report enters a drawing, which
takes its words from here alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedattn.config import ROWS, Row
from fedattn.privacy.claims import HYPOTHETICAL, show_epsilon
from fedattn.privacy.masks import AS_IF_MASKED
from fedattn.report.drawing import Line, bars, lines
from fedattn.report.shape import Report, RoundSection

_LARGEST = 1e6  # what is beyond is no epsilon or bpb that a drawing could show


@dataclass(frozen=True)
class Key:
    """An entry of a legend: the class that gives its look, and what it is."""

    style: str
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawing, its legend, and the same as a table."""

    title: str
    summary: str  # what a person who cannot see the drawing should know
    drawing: Markup
    keys: tuple[Key, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def charts(report: Report) -> tuple[Chart, ...]:
    """Those of the three that there is something to draw for, in that order."""
    found = (_epsilon(report), _participation(report), _quality(report))
    return tuple(chart for chart in found if chart is not None)


def _epsilon(report: Report) -> Chart | None:
    """Cumulative epsilon against each adversary, and the budgets; None if all are infinite.

    What is far above every budget would flatten the rest: its line ends at the upper edge.
    """
    pretends = report.hypothetical is not None
    costs = [each.hypothetical_epsilons if pretends else each.epsilons for each in report.rounds]
    groups = _alike(report.rounds, costs)
    budgets = _alike_budgets(report.totals.budgets)
    edge = min(4 * max((budget for budget, _ in budgets), default=math.inf), _LARGEST)
    drawn: list[Line] = []
    keys: list[Key] = []
    words: list[str] = []
    for rows, points in groups:
        inside = [(number, value) for number, value in points if value <= edge]
        told = f"{_named(rows)} {show_epsilon(points[-1][1])}"
        words.append(told + ("" if points[-1] in inside else ", beyond the drawing"))
        if inside:
            style = f"row-{rows[0]}"
            drawn.append(Line(style, ((0, 0.0), *inside), f"{_named(rows)} %s"))
            keys.append(Key(style, _named(rows)))
    if not drawn:
        return None
    last = max(each.number for each in report.rounds)
    for budget, rows in budgets:
        label = f"budget {budget:g}" + ("" if len(rows) == len(ROWS) else f": {_named(rows)}")
        drawn.append(Line("budget", ((0, budget), (last, budget)), label, is_dotted=False))
        keys.append(Key("budget", label))
    title = _epsilon_title(report)
    summary = f"After round {groups[0][1][-1][0]}: {'; '.join(words)}."
    return Chart(
        title=title,
        summary=summary,
        drawing=lines("epsilon", title, summary, drawn, from_zero=True),
        keys=tuple(keys),
        columns=("Round", "Outcome", *(row.capitalize() for row in ROWS)),
        rows=tuple(
            (
                str(each.number),
                each.outcome,
                *("–" if not cost else show_epsilon(cost[row]) for row in ROWS),
            )
            for each, cost in zip(report.rounds, costs, strict=True)
        ),
    )


def _epsilon_title(report: Report) -> str:
    if report.hypothetical is not None:
        return f"{HYPOTHETICAL} epsilon, round by round"
    claimed = {claim.row: claim.epsilon for claim in report.claims}
    if any(
        math.isinf(claimed.get(row, math.inf)) and not math.isinf(value)
        for row, value in report.totals.epsilons.items()
    ):
        return "What the rounds would have cost with secret noise"
    masked = report.secure_aggregation == "masked"
    return "Epsilon spent, round by round" + ("" if masked else f", {AS_IF_MASKED}")


def _alike(
    rounds: Sequence[RoundSection], costs: Sequence[Mapping[Row, float] | None]
) -> list[tuple[tuple[Row, ...], tuple[tuple[int, float], ...]]]:
    """Rows that cost the same throughout, with their points: (round, epsilon) where priced."""
    joined: dict[tuple[tuple[int, float], ...], tuple[Row, ...]] = {}
    for row in ROWS:
        points = tuple(
            (each.number, cost[row]) for each, cost in zip(rounds, costs, strict=True) if cost
        )
        if points:
            joined[points] = (*joined.get(points, ()), row)
    return [(rows, points) for points, rows in joined.items()]


def _alike_budgets(budgets: Mapping[Row, float]) -> list[tuple[float, tuple[Row, ...]]]:
    joined: dict[float, tuple[Row, ...]] = {}
    for row in ROWS:
        if budgets.get(row, math.inf) <= _LARGEST:
            joined[budgets[row]] = (*joined.get(budgets[row], ()), row)
    return list(joined.items())


def _named(rows: Sequence[Row]) -> str:
    return "all four adversaries" if len(rows) == len(ROWS) else ", ".join(rows)


def _participation(report: Report) -> Chart | None:
    """Who answered of those contacted; a round that released nothing is a bar of its own.

    None where the report counts nobody, since clients were drawn in secret.
    """
    if not report.rounds or any(each.contacted is None for each in report.rounds):
        return None
    nothing = [0 if each.survivors is not None else each.contacted or 0 for each in report.rounds]
    series = [
        ("answered", "in the sum", [each.survivors or 0 for each in report.rounds]),
        ("dropped", "dropped out", [each.dropouts or 0 for each in report.rounds]),
        ("nothing", "contacted, nothing released", nothing),
    ]
    shown = [each for each in series if any(each[2]) or each[0] == "answered"]
    title = "Clients, round by round"
    summary = _participation_in_words(report.rounds)
    return Chart(
        title=title,
        summary=summary,
        drawing=bars(
            "clients",
            title,
            summary,
            [each.number for each in report.rounds],
            [(style, f"{label} %s", counts) for style, label, counts in shown],
        ),
        keys=tuple(Key(style, label) for style, label, _ in shown),
        columns=("Round", "Outcome", "Contacted", "In the sum", "Dropped out"),
        rows=tuple(
            (
                str(each.number),
                each.outcome,
                str(each.contacted),
                *("–" if n is None else str(n) for n in (each.survivors, each.dropouts)),
            )
            for each in report.rounds
        ),
    )


def _participation_in_words(rounds: Sequence[RoundSection]) -> str:
    released = [each for each in rounds if each.survivors is not None]
    contacted = sum(each.contacted or 0 for each in released)
    dropouts = sum(each.dropouts or 0 for each in released)
    text = f"{len(released)} of {len(rounds)} rounds released a model"
    if contacted:
        text += f"; {dropouts} of {contacted} clients contacted in them dropped out"
    for outcome in ("aborted", "unfinished", "skipped"):
        count = sum(each.outcome == outcome for each in rounds)
        text += f"; {count} {outcome}" if count else ""
    return text + "."


def _quality(report: Report) -> Chart | None:
    """Bits per byte on validation users after each round; None for fewer than two points."""
    points = tuple(
        (point.round, point.bpb)
        for point in report.quality.validation
        if abs(point.bpb) <= _LARGEST
    )
    if len(points) < 2:
        return None
    title = "Bits per byte on validation users"
    (first, began), (last, ended) = points[0], points[-1]
    summary = (
        f"{began:.3f} after round {first}, {ended:.3f} after round {last}; lower is better. The "
        "axis does not begin at 0; other replies than those of before and after."
    )
    line = Line("bpb", points, "%s bits per byte", digits=3)
    return Chart(
        title=title,
        summary=summary,
        drawing=lines("quality", title, summary, [line], from_zero=False),
        keys=(),
        columns=("Round", "Bits per byte", "Since the first"),
        rows=tuple(
            (str(number), f"{bpb:.3f}", f"{bpb - began:+.3f}" if number != first else "")
            for number, bpb in points
        ),
    )
