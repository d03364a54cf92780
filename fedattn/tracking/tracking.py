"""An Observer that passes on what a run releases to trackers, and outlives each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from fedattn.config import Config
from fedattn.flower.observer import Observer, RoundSummary
from fedattn.privacy.claims import labels
from fedattn.report import Report
from fedattn.tracking.released import config_values, report_values, round_values, start_values
from fedattn.tracking.tracker import Tracker


class Tracking:
    """Tells `watching` everything and `trackers` what is released; as a context it closes them.

    A tracker that raises is dropped with a note to `watching`; the others, and the run, go on.
    Ctrl-C belongs to `watching`: no tracker can ask a run to stop. Stages and notes reach no
    tracker.
    """

    def __init__(self, watching: Observer, trackers: Sequence[Tracker], config: Config) -> None:
        self._watching, self._config = watching, config
        self._trackers = list(trackers)
        self._last = 0  # the last round that ended
        self._is_complete = False
        described = config_values(config)
        self._each(lambda tracker: tracker.begin(labels(config), described))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._each(lambda tracker: tracker.close(is_complete=self._is_complete))
        self._trackers.clear()

    def started(self, rounds: int, clients: int, bpb: float) -> None:
        """Pass on the quality of the start."""
        self._watching.started(rounds, clients, bpb)
        self._each(lambda tracker: tracker.log(0, start_values(bpb)))

    def stage(self, number: int, stage: str, done: int, expected: int) -> None:
        """For `watching` alone."""
        self._watching.stage(number, stage, done, expected)

    def note(self, text: str) -> None:
        """For `watching` alone."""
        self._watching.note(text)

    def round_ended(self, summary: RoundSummary) -> None:
        """Pass on what the round released."""
        self._watching.round_ended(summary)
        self._last = summary.round
        self._each(lambda tracker: tracker.log(summary.round, round_values(summary, self._config)))

    def stop_requested(self) -> bool:
        """Whether `watching` asks to stop."""
        return self._watching.stop_requested()

    def finished(self, report: Report) -> None:
        """Pass on the numbers of the final report, as of the last round that ended."""
        self._each(lambda tracker: tracker.log(self._last, report_values(report)))
        self._is_complete = True

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                with suppress(Exception):
                    tracker.close(is_complete=False)
                self._watching.note(
                    f"{tracker.name}: dropped after {type(error).__name__}"
                    f"{_reason(error)}; the training goes on without it"
                )


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return f" ({text})" if text else ""
