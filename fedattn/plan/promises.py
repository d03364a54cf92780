"""What a config promises and cannot hold: refused before any device is contacted."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

from fedattn.config import Config, Row
from fedattn.config.protection import LARGEST_EPSILON
from fedattn.errors import ConfigError, PrivacyError
from fedattn.footprint import bytes_per_conversation
from fedattn.mechanism import Mechanism, check_mechanism, threshold_of
from fedattn.privacy.binomial import mass, tail
from fedattn.privacy.calibration import accounted
from fedattn.privacy.events import round_event
from fedattn.privacy.rows import RowSpend, is_amplified, row_spend
from fedattn.skellam import MAX_VARIANCE, MIN_VARIANCE

MOST_LOST_ROUNDS = 0.1  # a larger chance that sampling alone loses a round is refused


def check_promises(config: Config, dimension: int) -> None:
    """Raise a FedattnError, with the remedy, unless `config` can train and hold what it promises.

    dimension: d, trainable parameters. What needs no dimension the config itself has refused. Here:
    a sum that wraps, a conversation that takes more memory than a batch may, shares of noise that
    cannot be drawn, cohorts that are too small too often, a delta too large for the population that
    a simulated cohort pretends, and a budget that the first round would pass, so that nothing would
    be trained.
    """
    check_mechanism(config, dimension)
    _check_memory(config)
    _check_pretended(config)
    _check_shares(config, dimension)
    _check_cohorts(config)
    world = accounted(config)
    first = [round_event(world, dimension)]
    for row, budget in config.privacy.budgets.items():
        spent = row_spend(world, first, row).epsilon
        if spent > budget:
            raise PrivacyError(
                f"privacy.epsilon_budget: the first round costs epsilon {spent:.4g} against "
                f"`{row}`, above {budget:g}: nothing would be trained; raise noise_multiplier "
                f"(`fedattn plan --epsilon {budget:g} --against {row}` finds it) or the budget"
            )


def check_whole_run(config: Config, rows: Mapping[Row, RowSpend]) -> None:
    """PrivacyError if all planned rounds would cost more than 20 against a row with a budget.

    The budget would stop such a run in time; a plan that asks for it is refused all the same,
    unless `privacy.i_know`. rows: what all rounds cost.
    """
    if config.privacy.i_know:
        return
    for row, budget in config.privacy.budgets.items():
        if rows[row].epsilon > LARGEST_EPSILON:
            raise PrivacyError(
                f"train.rounds {config.train.rounds} would cost epsilon {rows[row].epsilon:.4g} "
                f"against `{row}`, above {LARGEST_EPSILON:g}, which protects next to nothing; "
                f"plan fewer rounds, more noise (`fedattn plan --epsilon {budget:g} --against "
                f"{row}` finds it), or say `privacy.i_know: true`"
                + "".join(f"; {lost}" for lost in lost_amplification(config))
            )


def lost_amplification(config: Config) -> tuple[str, ...]:
    """A sentence, with the remedy, if the secret sampling of clients cannot be counted."""
    world = accounted(config)
    if world.privacy.client_rate == 1 or is_amplified(world):
        return ()
    enough = enough_participations(world)
    remedy = (
        f"max_participations {enough} or more would keep it"
        if enough is not None
        else "no max_participations keeps it: lower secagg.threshold or raise client_rate"
    )
    return (
        "the secret sampling of clients is not counted for the outsider: "
        f"max_participations {world.privacy.max_participations} would bind, or cohorts near "
        f"secagg.threshold would tell who took part, too often for delta; {remedy}",
    )


def skip_probability(config: Config) -> float:
    """The probability that a sampled cohort is below `secagg.threshold`; 0 if none is drawn."""
    n, q = config.data.clients, config.privacy.client_rate
    if q == 1:
        return 0.0
    return tail(n, 1 - q, n - config.secagg.threshold)  # so many are not drawn


def abort_probability(config: Config) -> float:
    """The probability of a cohort, large enough, that losing `dropout_share` of it would end.

    0 if clients are not sampled: the config has then refused such a threshold.
    """
    n, q = config.data.clients, config.privacy.client_rate
    if q == 1:
        return 0.0
    share = config.secagg.dropout_share
    return math.fsum(
        mass(n, q, size)
        for size in range(config.secagg.threshold, n + 1)
        if threshold_of(config, size) > size - int(share * size)
    )


def enough_participations(config: Config) -> int | None:
    """The least `max_participations` that keeps amplification; None if no number would.

    It must bind so rarely that its chance fits the part of delta left for such failures.
    """

    def is_kept(wanted: int) -> bool:
        privacy = config.privacy.model_copy(update={"max_participations": wanted})
        return is_amplified(config.model_copy(update={"privacy": privacy}))

    caps = range(1, config.train.rounds + 1)
    place = bisect_left(caps, True, key=is_kept)  # the larger, the more seldom it binds
    return caps[place] if place < len(caps) else None


def _check_pretended(config: Config) -> None:
    pretended = accounted(config).privacy
    if pretended.delta > 1 / (10 * pretended.max_units):
        raise PrivacyError(
            f"privacy.delta {pretended.delta:g} is above 1/(10 * {pretended.max_units}), for the "
            "population that `hypothetical` pretends; lower delta or that population"
        )


def _check_memory(config: Config) -> None:
    most = config.train.max_batch_bytes
    if most is None:
        return
    taken = bytes_per_conversation(config)
    if taken > most:
        raise ConfigError(
            f"train.max_batch_bytes {most}: the {config.train.draws} draws of one conversation, "
            f"which are computed at once, take {taken} bytes; raise it or lower train.draws"
        )


def _check_shares(config: Config, dimension: int) -> None:
    if config.privacy.noise != "distributed":
        return
    mechanism = Mechanism(config, dimension)
    largest = max(
        mechanism.share_variance(config.secagg.threshold),
        mechanism.share_variance(config.data.clients),
        mechanism.released_variance if mechanism.is_sampled else 0.0,  # a top-up is one draw
    )
    if not MIN_VARIANCE <= mechanism.smallest_share <= largest <= MAX_VARIANCE:
        raise PrivacyError(
            f"secagg.grid_scale {mechanism.grid_scale:g} gives shares of noise of variance "
            f"{mechanism.smallest_share:.3g} and draws of up to {largest:.3g}, must be in "
            "2^-20..2^34; set another secagg.grid_scale, or `auto`"
        )


def _check_cohorts(config: Config) -> None:
    skipped, aborted = skip_probability(config), abort_probability(config)
    if skipped + aborted > MOST_LOST_ROUNDS:
        raise PrivacyError(
            f"secagg.threshold {config.secagg.threshold}: a sampled cohort is below it with "
            f"probability {skipped:.2g}, or so little above that losing dropout_share "
            f"{config.secagg.dropout_share:g} ends the round with {aborted:.2g}; together at most "
            f"{MOST_LOST_ROUNDS:g} is allowed: lower threshold, or raise client_rate"
        )
