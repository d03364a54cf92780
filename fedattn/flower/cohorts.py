"""Who takes part in a round: everybody, or a secret Poisson sample of the federation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from fedattn.config import Config
from fedattn.errors import PrivacyError, ThresholdError
from fedattn.flower.enrolment import Member
from fedattn.privacy.rows import participations
from fedattn.randomness import Randomness


class Cohorts:
    """Draws each round's clients as the accounting assumes.

    Every member independently with probability `privacy.client_rate`, from entropy that the server
    keeps to itself: amplification by sampling (row 1) holds against who cannot tell who was drawn.
    ThresholdError if the federation is not of the declared size, which the rate's accounting needs.
    """

    def __init__(self, config: Config, members: Sequence[Member], randomness: Randomness) -> None:
        self.config, self.members = config, list(members)
        self.is_sampled = config.privacy.client_rate < 1
        if self.is_sampled and len(members) != config.data.clients:
            raise ThresholdError(
                f"{len(members)} devices enrolled, data.clients says {config.data.clients}, and "
                "sampling is accounted for that number; set data.clients to what enrols"
            )
        seed = config.privacy.client_sampling_seed
        self._drawn: Counter[bytes] = Counter()  # rounds by key
        self._round = 0  # the last that was drawn
        self._randomness = (
            randomness if seed is None else Randomness.seeded(seed, "client sampling")
        )
        if self._randomness.is_seeded and config.seed is None:
            raise PrivacyError(
                "clients would be drawn from a predictable stream; only a run with `seed`, which "
                "is labelled NOT PRIVATE, may do so"
            )

    def draw(self) -> list[Member]:
        """This round's members, in the order of the roster; possibly none.

        Who was drawn as often as a device may take part is left out: it would decline.
        """
        chosen = np.ones(len(self.members), np.bool_)
        self._round += 1
        if self.is_sampled:
            limit = np.uint64(int(self.config.privacy.client_rate * 2.0**64))
            # a stream a round: a seeded run that is resumed draws as if it had not stopped
            words = self._randomness.child(str(self._round)).words(len(self.members))
            chosen = words < limit
        drawn = [self.members[index] for index in np.flatnonzero(chosen).tolist()]
        most = participations(self.config)
        return [member for member in drawn if self._drawn[member.key] < most]

    @property
    def is_exhausted(self) -> bool:
        """Whether no device may take part any more."""
        most = participations(self.config)
        return all(self._drawn[member.key] >= most for member in self.members)

    def contacted(self, cohort: Sequence[Member]) -> None:
        """Count a round that is run with `cohort`, whatever becomes of it."""
        self._drawn.update(member.key for member in cohort)

    def resume(self, last_round: int, rosters: Iterable[Iterable[bytes]]) -> None:
        """Go on after `last_round`; `rosters` are the keys of every round that was intended."""
        self._round = last_round
        self._drawn = Counter(key for roster in rosters for key in roster)

    def is_enough(self, cohort: Sequence[Member]) -> bool:
        """Whether a round is run with `cohort`."""
        return len(cohort) >= self.config.secagg.threshold
