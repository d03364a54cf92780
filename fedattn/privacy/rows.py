"""Epsilon against each adversary: what a row sees of the events, and what fails at random.

The four rows of DESIGN section 4. A row's delta pays for the mechanism and for everything that
can go wrong with a data-independent probability: the noise sampler's distance from the exact
distribution, a bad random graph of secure aggregation, a cap that makes sampling not Poisson, and
a cohort whose size tells whether one client is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedattn.config import ROWS, Config, Row
from fedattn.errors import PrivacyError
from fedattn.mechanism import hypothetical_world
from fedattn.privacy.accountants import EPSILON_LIMIT, Spend, View, spend
from fedattn.privacy.binomial import mass, tail
from fedattn.privacy.events import (
    Event,
    GaussianSum,
    NoNoise,
    PoissonGaussian,
    SkellamSum,
    round_event,
)
from fedattn.privacy.gaussian import Bounds
from fedattn.privacy.renyi import SkellamTerm
from fedattn.skellam import TOTAL_VARIATION

FAILURE_SHARE = 0.01  # of delta: what each kind of random failure may take
GRAPH_FAILURE = 2.0**-40  # a round: the honest clients' graph falls apart (secure aggregation)


@dataclass(frozen=True)
class RowSpend:
    """Against `row` the events cost (`epsilon`, `delta`); `failures` is the part of delta that
    random failures take, and `mechanism_delta` what is left for the noise itself."""

    row: Row
    epsilon: float
    delta: float
    failures: float
    mechanism_delta: float
    accountants: Mapping[str, Bounds]


def spends(config: Config, events: Sequence[Event]) -> dict[Row, RowSpend]:
    """The cost of `events`, the rounds that `config` has spent, against each adversary."""
    return {row: row_spend(config, events, row) for row in ROWS}


def row_spend(config: Config, events: Sequence[Event], row: Row) -> RowSpend:
    """The cost of `events` against one adversary.

    Infinite where the row sees a sum without noise, above EPSILON_LIMIT, or where the sampler's
    error times 1 + e^epsilon would pass its share of delta.
    """
    delta = config.privacy.delta
    amplified = row == "outsider" and is_amplified(config)
    counted = list(events)
    if not amplified:
        counted = counted[: participations(config)]
    failures = amplification_failure(config) if amplified else 0.0
    if config.privacy.noise == "distributed":
        failures += FAILURE_SHARE * delta  # the sampler's, checked below
        if row in ("server", "collusion"):
            failures += config.train.rounds * GRAPH_FAILURE
    if not failures < delta:
        raise PrivacyError(
            f"privacy.delta {delta:g} is no larger than the probability {failures:.3g} that "
            "secure aggregation fails in one of the rounds; raise delta or run fewer rounds"
        )
    left = delta - failures
    cost = _priced(config, [view(event, row, amplified=amplified) for event in counted], left)
    epsilon = cost.epsilon
    if epsilon > EPSILON_LIMIT or not _is_sampler_exact_enough(counted, row, epsilon, delta):
        epsilon = math.inf
    return RowSpend(row, epsilon, delta, failures, left, cost.accountants)


def life_epsilon(events: Sequence[Event], row: Row, delta: float) -> float:
    """What `events`, all rounds of one device in all runs, cost against `row` at `delta`.

    Never amplified by the server's sampling of clients, which a device cannot check. Gaussian and
    Skellam rounds are priced apart, each at half of delta, and added (basic composition).
    Infinite where a sum has no noise for `row` or nothing bounds the cost.
    """
    views = [view(event, row, amplified=False) for event in events]
    if any(isinstance(each, NoNoise) for each in views):
        return math.inf
    failures, sums = 0.0, [event for event in events if isinstance(event, SkellamSum)]
    if sums:
        failures = FAILURE_SHARE * delta  # the sampler's, checked below
        if row in ("server", "collusion"):
            failures += len(sums) * GRAPH_FAILURE
    gaussian = [each for each in views if isinstance(each, PoissonGaussian)]
    skellam = [each for each in views if isinstance(each, SkellamTerm)]
    families = [family for family in (gaussian, skellam) if family]
    try:
        epsilon = sum(spend(each, (delta - failures) / len(families)).epsilon for each in families)
    except (PrivacyError, ArithmeticError, MemoryError):
        return math.inf  # more than can be priced
    if epsilon > EPSILON_LIMIT or not _is_sampler_exact_enough(events, row, epsilon, delta):
        return math.inf
    return epsilon


def view(event: Event, row: Row, *, amplified: bool = True) -> View:
    """What `row` sees of one round; `amplified`: with the server's secret sampling of clients."""
    if isinstance(event, PoissonGaussian | NoNoise):
        return event  # each device adds its full noise: all rows see the same
    rate = event.record_rate * (event.client_rate if row == "outsider" and amplified else 1.0)
    if isinstance(event, GaussianSum):
        if row != "outsider":
            return NoNoise()
        return PoissonGaussian(rate, math.sqrt(event.variance) / event.l2, 1)
    variance = {
        "outsider": event.released_variance,
        "server": event.participant_variance,
        "collusion": event.honest_variance,
        "unmasked": event.share_variance,
    }[row]
    return SkellamTerm(event.l2, event.l1, variance, rate, 1)


def participations(config: Config) -> int:
    """Rounds in which one device takes part at most."""
    wanted = config.privacy.max_participations
    return config.train.rounds if wanted is None else min(wanted, config.train.rounds)


def is_amplified(config: Config) -> bool:
    """Whether the server samples clients and the outsider's row may count it."""
    return (
        config.privacy.client_rate < 1
        and amplification_failure(config) <= FAILURE_SHARE * config.privacy.delta
    )


def amplification_failure(config: Config) -> float:
    """The probability that sampling clients was not what amplification assumes; 0 if unused.

    Two events that do not depend on data. A client drawn more often than it may answer: from then
    on its sampling is not Poisson. A cohort that is large enough with a client and too small
    without it: the release then tells that it took part.
    """
    q, rounds = config.privacy.client_rate, config.train.rounds
    if q == 1:
        return 0.0
    others, least = config.data.clients - 1, config.secagg.threshold
    return _amplification_failure(rounds, q, participations(config), others, least)


@lru_cache(maxsize=64)
def _amplification_failure(rounds: int, q: float, cap: int, others: int, least: int) -> float:
    capped = tail(rounds, q, cap)
    edge = mass(others, q, least - 1)
    return capped + rounds * q * edge


def hypothetical_spends(config: Config, dimension: int, rounds: int) -> dict[Row, RowSpend] | None:
    """What `rounds` rounds cost in the world that `privacy.hypothetical` pretends, or None."""
    world = hypothetical_world(config)
    if world is None:
        return None
    return spends(world, [round_event(world, dimension)] * rounds)


def passed_budgets(config: Config, dimension: int, events: Sequence[Event]) -> tuple[Row, ...]:
    """The rows whose budget `events` pass. A simulated cohort is held to its hypothetical cost."""
    pretended = hypothetical_spends(config, dimension, len(events))
    found = []
    for row, budget in config.privacy.budgets.items():
        cost = row_spend(config, events, row) if pretended is None else pretended[row]
        if cost.epsilon > budget:
            found.append(row)
    return tuple(found)


def _priced(config: Config, views: Sequence[View], delta: float) -> Spend:
    try:
        return spend(views, delta)
    except PrivacyError:
        if config.privacy.hypothetical is None:
            raise
        return Spend(math.inf, {}, delta)  # scaled-down noise may cost more than can be priced


def _is_sampler_exact_enough(
    events: Sequence[Event], row: Row, epsilon: float, delta: float
) -> bool:
    """Whether inexact noise adds less to `delta` than its share.

    It adds (1 + e^epsilon) times the distance of all draws from exact ones; in logarithms, as
    e^epsilon may be beyond a float.
    """
    draws = sum(
        event.coordinates * (1 if row == "unmasked" else event.most_clients + 1)
        for event in events
        if isinstance(event, SkellamSum)
    )
    if draws == 0:
        return True
    added = epsilon + math.log1p(math.exp(-epsilon)) + math.log(draws * TOTAL_VARIATION)
    return added <= math.log(FAILURE_SHARE * delta)
