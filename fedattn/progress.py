"""What a person sees of a run: live progress on stderr, a table at the end on stdout."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fedattn.config import ROWS, Config
from fedattn.flower.observer import RoundSummary
from fedattn.printable import printable
from fedattn.privacy.claims import HYPOTHETICAL, labels, show_epsilon
from fedattn.privacy.masks import AS_IF_MASKED
from fedattn.report import Report
from fedattn.simulate import Simulation


class Live:
    """An Observer that draws progress and turns the first Ctrl-C into a polite stop.

    The second Ctrl-C raises KeyboardInterrupt, wherever the run is.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[clients]}"),
            TextColumn("{task.fields[spent]}"),
            TextColumn("ETA {task.fields[eta]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "loading", total=None, clients="data and model", spent="", eta="-:--"
        )
        self._stops = 0
        self._began = time.monotonic()
        self._epsilon = 0.0
        is_masked = config.secure_aggregation == "masked"
        self._as_if = "" if is_masked else f" {AS_IF_MASKED}"
        self._pretends = config.privacy.hypothetical is not None
        self._rounds_done = 0

    def __enter__(self) -> Self:
        self._previous: Any = signal.signal(signal.SIGINT, self._interrupted)
        for label in labels(self._config):
            self._console.print(f"[bold red]{label}")
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        signal.signal(signal.SIGINT, self._previous)

    def started(self, rounds: int, clients: int, bpb: float) -> None:
        """Show the bar with one step per client and round."""
        self._began = time.monotonic()
        self._progress.update(
            self._task, description="training", total=rounds * clients, completed=0
        )
        self._clients = clients
        start = f"{bpb:.3f} bits per byte of test users"  # other than those of a round's line
        self.note(f"{clients} clients, {rounds} rounds; start: {start}")

    def stage(self, number: int, stage: str, done: int, expected: int) -> None:
        """Advance while clients train; name the stage otherwise."""
        after = {"advertise": 0.0, "share": 0.0, "upload": float(done)}.get(stage, float(expected))
        completed = self._rounds_done * self._clients + min(after, self._clients)
        total = self._config.train.rounds * self._clients
        self._progress.update(
            self._task,
            description=f"round {number}/{self._config.train.rounds}",
            completed=completed,
            clients=f"{stage} {done}/{expected} clients",
            spent=self._spent(),
            eta=self._eta(completed, total),
        )

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(f"[dim]{text}")

    def round_ended(self, summary: RoundSummary) -> None:
        """Print the round's line."""
        self._epsilon = summary.epsilon
        self._rounds_done = summary.round
        self._progress.update(self._task, spent=self._spent())
        quality = (
            ""
            if summary.validation_bpb is None
            else f", validation {summary.validation_bpb:.3f} bpb"
        )
        state = f"{summary.survivors} survivors{quality}" if summary.is_released else "aborted"
        self._console.print(
            f"round {summary.round}: {state}, {self._spent()} spent", markup=False, soft_wrap=True
        )

    def _spent(self) -> str:
        shown = f"epsilon {show_epsilon(self._epsilon)}{self._as_if}"
        return f"{HYPOTHETICAL}, real {shown}" if self._pretends else shown

    def stop_requested(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stops > 0

    def _interrupted(self, _signal: int, _frame: FrameType | None) -> None:
        self._stops += 1
        if self._stops > 1:
            raise KeyboardInterrupt
        self.note("stopping after this round; Ctrl-C again aborts at once")

    def _eta(self, completed: float, total: float) -> str:
        if completed <= 0:
            return "-:--"
        seconds = (time.monotonic() - self._began) / completed * (total - completed)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def print_result(result: Simulation) -> None:
    """The table a person reads at the end of a run."""
    report, console = result.report, Console()
    totals, quality = report.totals, report.quality
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    others = "".join(
        f", {count} {what}"
        for count, what in (
            (totals.rounds_aborted, "aborted"),
            (totals.rounds_skipped, "skipped"),
        )
        if count
    )
    table.add_row(
        "rounds", f"{totals.rounds_released} of {totals.rounds_planned}{others} ({report.outcome})"
    )
    unit = "nothing" if math.isinf(totals.epsilon) else f"one {report.claims[0].unit}"
    table.add_row("protects", unit)
    table.add_row("privacy spent", privacy_table(report))
    if quality.bpb_before is not None and quality.bpb_after is not None:
        table.add_row(
            "bits per byte",
            f"{quality.bpb_before:.3f} before, {quality.bpb_after:.3f} after "
            f"({quality.bpb_after - quality.bpb_before:+.3f}; {quality.examples} replies "
            "of held-out users)",
        )
    for number, sample in enumerate(report.samples, 1):
        said, now = sample.context[-1], sample.reply
        # what a model writes may hold a terminal's control characters
        table.add_row(f"sample {number}", Text(f"{printable(said)}\n> {printable(now)}"))
    table.add_row("time", f"{result.wall_s:.0f} s")
    table.add_row("run", str(result.run_dir))
    notes = [Text(printable(note), style="bold red") for note in report.notes]
    title = f"fedattn: {report.config['name']}"
    if report.hypothetical is not None:
        title = f"{HYPOTHETICAL} {title}"
    console.print(Panel(Group(*notes, table), title=title))
    # Outside the panel and unbroken, so that it can be copied.
    console.print("audit it with", style="dim")
    console.print(
        f"{_command()} audit {result.run_dir} --server-key {result.server_fingerprint}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def privacy_table(report: Report) -> Table:
    """Epsilon against each adversary, its budget, and beside it what a run pretends."""
    totals, pretended = report.totals, report.hypothetical
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("against")
    masked = "" if report.secure_aggregation == "masked" else ", as if masked"
    shown_as = "epsilon" if pretended is None else "real epsilon"
    table.add_column(f"{shown_as}{masked}", justify="right")
    if pretended is not None:
        table.add_column(f"{HYPOTHETICAL} epsilon{masked}", justify="right")
    table.add_column("budget", justify="right")
    for row in ROWS:
        shown = [show_epsilon(totals.epsilons[row])]
        if pretended is not None:
            shown.append(show_epsilon(pretended.epsilons[row]))
        budget = totals.budgets.get(row)
        table.add_row(row, *shown, "-" if budget is None else f"{budget:g}")
    table.caption = f"delta {totals.delta:g}"
    table.caption_justify = "left"
    return table


def _command() -> str:
    """How this person can call fedattn: by name if it is on the path, else as it was called."""
    if shutil.which("fedattn"):
        return "fedattn"
    is_module = Path(sys.argv[0]).suffix == ".py"  # python -m fedattn.cli
    return f"{sys.executable} -m fedattn.cli" if is_module else sys.argv[0]
