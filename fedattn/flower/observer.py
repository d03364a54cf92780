"""What a run tells a person while it goes on, and how a person asks it to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedattn.config import Config, Row
from fedattn.privacy.events import Event
from fedattn.privacy.rows import RowSpend, hypothetical_spends, spends


@dataclass(frozen=True)
class RoundSummary:
    """A round as it ended: all of it is the server's to show.

    `cohort` and `survivors` are in the ledger; where clients are sampled in secret they are not
    for outsiders.
    """

    round: int
    is_released: bool
    cohort: int  # clients that were asked
    survivors: int  # clients in the sum; 0 if the round was aborted
    epsilons: Mapping[Row, float]  # spent so far, by adversary row
    hypothetical: Mapping[Row, float] | None  # the same in the world that a run pretends
    validation_bpb: float | None

    @property
    def epsilon(self) -> float:
        """What is spent so far against the outsider."""
        return self.epsilons["outsider"]


def summarize(
    config: Config,
    dimension: int,
    events: Sequence[Event],
    number: int,
    *,
    cohort: int,
    survivors: int | None,
    validation_bpb: float | None,
) -> RoundSummary:
    """Round `number` after `events`, all that is spent; survivors: None if it was aborted.

    dimension: d, trainable parameters.
    """
    pretended = hypothetical_spends(config, dimension, len(events))
    return RoundSummary(
        round=number,
        is_released=survivors is not None,
        cohort=cohort,
        survivors=survivors or 0,
        epsilons=_epsilons(spends(config, events)),
        hypothetical=None if pretended is None else _epsilons(pretended),
        validation_bpb=validation_bpb,
    )


def _epsilons(costs: Mapping[Row, RowSpend]) -> dict[Row, float]:
    return {row: cost.epsilon for row, cost in costs.items()}


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
