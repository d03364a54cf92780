"""What a run tells a person while it goes on, and how a person asks it to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RoundSummary:
    """A round as it ended: all of it is the server's to show."""

    round: int
    is_released: bool
    survivors: int
    epsilon: float  # spent so far
    validation_bpb: float | None


class Observer(Protocol):
    """Anything that watches a run."""

    def started(self, rounds: int, clients: int, bpb: float) -> None:
        """Training begins from a model of `bpb` bits per byte."""

    def stage(self, number: int, stage: str, done: int, expected: int) -> None:
        """`done` of `expected` replies of a stage of round `number` have arrived."""

    def note(self, text: str) -> None:
        """Something a person should know; never about a device's data."""

    def round_ended(self, summary: RoundSummary) -> None:
        """A round was released or aborted."""

    def stop_requested(self) -> bool:
        """Whether to end after the round that is under way."""


class SilentObserver:
    """Watches nothing and never asks to stop."""

    def started(self, rounds: int, clients: int, bpb: float) -> None:
        """Ignore it."""

    def stage(self, number: int, stage: str, done: int, expected: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def round_ended(self, summary: RoundSummary) -> None:
        """Ignore it."""

    def stop_requested(self) -> bool:
        """Never."""
        return False
