"""One tracker: something that numbers and texts of a run can be written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fedattn.tracking.released import Plain


class Tracker(Protocol):
    """Where released quantities go. It never sees a summary or a report, only what it may keep.

    Any method may raise: it is then dropped, and training goes on.
    """

    @property
    def name(self) -> str:
        """As `--track` calls it."""

    def begin(self, labels: Sequence[str], config: Mapping[str, Plain]) -> None:
        """Called once, first: the loud labels that go with every number, and the config."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values`, of keys in `released.KEYS`, as of round `step`; 0: before the first."""

    def close(self, *, is_complete: bool) -> None:
        """Called once, last, even if `begin` failed: whether the run came to its report."""
