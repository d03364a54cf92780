"""What may be claimed, and to whom: the numbers of a report and the sentences beside them.

Everything here follows from the ledger (config, events, who held the authority), so that an audit
derives it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedattn.config import ROWS, Config, Row
from fedattn.mechanism import hypothetical_world
from fedattn.privacy.events import Event
from fedattn.privacy.masks import AS_IF_MASKED, MASKS_SKIPPED
from fedattn.privacy.rows import RowSpend, hypothetical_spends, spends
from fedattn.privacy.scope import assumptions, caveats
from fedattn.privacy.sentences import (
    HYPOTHETICAL,
    NOT_PRIVATE,
    Sentences,
    adjacency,
    labels,
    reasons,
)

ADVERSARIES: Mapping[Row, str] = {
    "outsider": "an outsider who sees the released models",
    "server": "the server or a curious participant",
    "collusion": "the server colluding with other clients",
    "unmasked": "whoever breaks secure aggregation and sees one client's unmasked update",
}

__all__ = [
    "ADVERSARIES",
    "AS_IF_MASKED",
    "HYPOTHETICAL",
    "MASKS_SKIPPED",
    "NOT_PRIVATE",
    "Claim",
    "adjacency",
    "assumptions",
    "caveats",
    "claims",
    "hypothetical_claims",
    "labels",
    "show_epsilon",
]


@dataclass(frozen=True)
class Claim:
    """Against `row` each `unit` has (epsilon, delta)-DP if the `assumptions` hold.

    failures: the part of delta that random failures take, of sampler, graph and client sampling.
    """

    row: Row
    epsilon: float
    delta: float
    failures: float
    unit: str
    assumptions: Sentences

    @property
    def adversary(self) -> str:
        """Who `row` is, in words."""
        return ADVERSARIES[self.row]


def claims(
    config: Config, events: Sequence[Event], authority_held_by: str | None = None
) -> tuple[Claim, ...]:
    """What `events`, the rounds spent under `config`, allow to claim: one row per adversary.

    Without noise, or with noise from a seed, all are infinite. A run with `hypothetical` is
    claimed for what it is; what it pretends is in `hypothetical_claims`.
    authority_held_by: who certified the devices, as the ledger declares; None: not known yet.
    """
    costs, why = spends(config, events), reasons(config, authority_held_by)
    return tuple(_claim(config, costs[row], why[row]) for row in ROWS)


def hypothetical_claims(config: Config, dimension: int, rounds: int) -> tuple[Claim, ...]:
    """What `rounds` rounds would be claimed for in the world that a run pretends; else nothing.

    Each row says so first. dimension: d, trainable parameters.
    """
    wanted, world = config.privacy.hypothetical, hypothetical_world(config)
    costs = hypothetical_spends(config, dimension, rounds)
    if wanted is None or world is None or costs is None:
        return ()
    why = reasons(world)
    pretended = (
        f"{HYPOTHETICAL}: had {wanted.cohort} of {wanted.population} clients taken part in a "
        "round, with threshold and collusion in the same proportion; this is not the epsilon of "
        "the run that took place."
    )
    return tuple(_claim(world, costs[row], (pretended, *why[row])) for row in ROWS)


def _claim(config: Config, cost: RowSpend, why: Sentences) -> Claim:
    return Claim(
        row=cost.row,
        epsilon=cost.epsilon if config.is_private else math.inf,
        delta=cost.delta,
        failures=cost.failures,
        unit=config.privacy.unit,
        assumptions=why,
    )


def show_epsilon(value: float) -> str:
    """Epsilon for people, rounded up so that it never reads as less than it is.

    >>> show_epsilon(4.6941), show_epsilon(math.inf), show_epsilon(0.0)
    ('4.70', '∞', '0')
    """
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    digits = 2 if value >= 0.1 else 2 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.{digits}f}"
