"""A plan as a person reads it, at 80 columns."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedattn.config import ROWS
from fedattn.plan import Plan
from fedattn.privacy.calibration import SEARCHED
from fedattn.privacy.claims import ADVERSARIES, HYPOTHETICAL, labels, show_epsilon


def plan_table(plan: Plan) -> RenderableType:
    """Who learns how much, what a round weighs, what margins cost, how long it takes."""
    config = plan.config
    parts: list[RenderableType] = [Text(label, style="bold red") for label in labels(config)]
    parts += [Text(_headline(plan)), Text(""), _rows(plan), Text(""), _facts(plan)]
    if plan.margins:
        parts += [Text(""), _margins(plan)]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    title = f"fedattn plan: {config.name}"
    if plan.hypothetical is not None:
        title = f"{HYPOTHETICAL} - {title}"
    return Panel(Group(*parts), title=Text(title))


def _headline(plan: Plan) -> str:
    privacy, train = plan.config.privacy, plan.config.train
    if privacy.unit == "none":
        return f"{train.rounds} rounds without noise; nothing is protected."
    text = (
        f"{train.rounds} rounds; protects one {privacy.unit}, noise: {privacy.noise}, "
        f"noise multiplier {privacy.noise_multiplier:g}, delta {privacy.delta:g}."
    )
    if plan.calibration is not None:
        text += (
            f"\nThat is the least noise for epsilon {plan.calibration.epsilon:g} against "
            f"{', '.join(plan.calibration.against)}; the config says "
            f"{plan.calibration.configured:g}."
        )
    if plan.stops_before_round is not None:
        text += (
            f"\nThe run would end before round {plan.stops_before_round}, which would pass a "
            "budget."
        )
    return text


def _vector(plan: Plan) -> str:
    masked = plan.config.secure_aggregation == "masked"
    return "masked vector" if masked else "vector in clear"


def _rows(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("against")
    table.add_column("who", style="dim", max_width=36)
    table.add_column("epsilon", justify="right")
    if plan.hypothetical is not None:
        table.add_column("pretended", justify="right")
    table.add_column("budget", justify="right")
    table.add_column("allows", justify="right")
    for row in ROWS:
        cells = [row, ADVERSARIES[row], show_epsilon(plan.rows[row].epsilon)]
        if plan.hypothetical is not None:
            cells.append(show_epsilon(plan.hypothetical[row].epsilon))
        budget = plan.config.privacy.budgets.get(row)
        if budget is None:
            cells += ["none", ""]
        else:
            rounds = plan.rounds_within_budget[row]
            most = SEARCHED * plan.config.train.rounds
            cells.append(f"{budget:g}")
            cells.append(f"over {most} rounds" if rounds is None else f"{rounds} rounds")
        table.add_row(*cells)
    return table


def _facts(plan: Plan) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in (*_sizes(plan), *_time(plan)):
        table.add_row(name, value)
    return table


def _sizes(plan: Plan) -> list[tuple[str, str]]:
    sizes = plan.sizes
    found = [
        (
            "vector",
            f"{sizes.dimension:,} parameters, {sizes.padded:,} coordinates on a grid of "
            f"{sizes.grid_scale:,.0f} steps a unit",
        ),
        (
            "modulus",
            f"2^{sizes.modulus_bits}; a round's sum wraps with probability "
            + ("0" if sizes.wrap_probability == 0 else f"{sizes.wrap_probability:.1g} at most"),
        ),
        (
            "per client, round",
            f"{_bytes(sizes.upload_bytes)} {_vector(plan)} up, {_bytes(sizes.download_bytes)} "
            "model down",
        ),
        (
            "cohort",
            f"{sizes.expected_cohort:.4g} of {sizes.clients} clients, threshold "
            f"{sizes.threshold}; {sizes.expected_survivors:.4g} survive if dropout_share is lost",
        ),
    ]
    if sizes.expected_cohort < sizes.clients:
        found.append(
            (
                "too small",
                f"skipped with probability {sizes.skip_probability:.1g}, ended by dropouts "
                f"with {sizes.abort_probability:.1g} a round",
            )
        )
    noise = []
    if sizes.share_deviation is not None:
        noise.append(f"a share's deviation is {sizes.share_deviation:,.1f} grid steps")
    if sizes.noise_deviation is not None:
        noise.append(f"the mean's at least {sizes.noise_deviation:.3g}")
    if noise:
        found.append(("noise", "; ".join(noise)))
    return found


def _time(plan: Plan) -> list[tuple[str, str]]:
    seen = plan.prediction
    if seen is None:
        return []
    return [
        (
            "time, predicted",
            f"{_duration(seen.seconds_per_run)} for the run, {_duration(seen.seconds_per_round)} "
            f"a round: training alone, clients one after another, "
            f"{seen.seconds_per_example * 1e3:.3g} ms an example, {seen.examples_per_client:g} of "
            "full length per client; a simulation's workers share them",
        ),
        (
            "memory, predicted",
            f"{_bytes(seen.peak_bytes)} (probed on this machine, in one process; data, keys, "
            "masks and a simulation's workers come on top)",
        ),
    ]


def _margins(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(f"margins ({plan.margins_against})")
    table.add_column("", style="dim", max_width=40)
    table.add_column("noise", justify="right")
    table.add_column("epsilon without", justify="right")
    for each in plan.margins:
        table.add_row(
            each.name, each.meaning, f"x {each.factor:.3f}", show_epsilon(each.epsilon_without)
        )
    return table


def _bytes(count: int) -> str:
    value, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.3g} h"
