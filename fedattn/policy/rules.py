"""Why a device declines an instruction: pure functions of policy, instruction and past spends.

Nothing here reads private data. Each rule has a stable name, which is all that the server learns:

    config.SECTION   differs from the agreed config (a device with an agreed config)
    masks            a sum without masks, which a device with `limits` never takes part in
    mode             unit and noise are not among those allowed; the rest with `limits`
    noise            less noise than allowed
    clip_norm        a larger clip norm than allowed
    cohort           fewer devices in a sum than allowed; or more than the federation has
    colluding        fewer colluding devices tolerated than allowed
    hypothetical     the noise of a pretended cohort
    seed             predictable randomness
    start_model      a model to start from that is not allowed or not the one installed
    dimension        not that of the installed model
    event            a cost that is not what the config makes of a round
    work             more computing than allowed, or more memory for one conversation
    mechanism        numbers that the codec cannot encode
    cleaning         a package that this device's own cleaning needs is missing or broken
    replay           answered before
    participations   taken part as often as it may
    budget           epsilon would pass its budget
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedattn.config import Config, DataConfig, Row
from fedattn.data.clean import require_cleaning
from fedattn.device_ledger import Answer, Lines
from fedattn.errors import ConfigError, DataError, PrivacyError, RefusalError
from fedattn.footprint import bytes_per_conversation
from fedattn.instruction import Instruction
from fedattn.policy.shape import Limits, Policy
from fedattn.privacy.events import Event, GaussianSum, SkellamSum
from fedattn.privacy.rows import life_epsilon, participations, passed_budgets

AGREED = ("privacy", "secagg", "secure_aggregation", "train", "model", "seed")


def mode_of(config: Config) -> str:
    """unit/noise, as policies name it."""
    return f"{config.privacy.unit}/{config.privacy.noise}"


def check(policy: Policy, instruction: Instruction) -> None:
    """RefusalError if the instruction's terms break a rule that needs nothing but the policy."""
    if policy.agreed_config is not None:
        _check_agreed(policy.agreed_config, instruction)
    if policy.limits is not None:
        _check_limits(policy.limits, policy.seed, instruction)
    _check_memory(policy, instruction)


def check_round(instruction: Instruction, dimension: int) -> None:
    """RefusalError unless the round is about the installed model and costs what it says."""
    if instruction.dimension != dimension:
        raise RefusalError("dimension", "is not that of the model installed here")
    if instruction.event != instruction.demanded_event:
        raise RefusalError("event", "is not what the config makes of a round")


def check_mechanism(instruction: Instruction) -> None:
    """RefusalError for a codec or a protocol that this device could not follow to the end.

    To be called for a roster and cohort that were checked; what fails here would else fail after
    data were read and the spend was written.
    """
    if not instruction.is_computable:
        raise RefusalError("mechanism", "cannot be computed on this device")


def check_cleaning(data: DataConfig) -> None:
    """RefusalError unless what this device's own cleaning needs works here.

    Else each conversation would count as absent: noise alone would be contributed, in silence.
    """
    try:
        require_cleaning(data.clean)
    except DataError as error:
        raise RefusalError("cleaning", str(error)) from None


def check_cohort(instruction: Instruction) -> None:
    """RefusalError for a roster of a size that the instruction's own config does not allow."""
    secagg, n = instruction.config.secagg, len(instruction.roster)
    if n < secagg.threshold:
        raise RefusalError("cohort", f"below this device's threshold {secagg.threshold}")
    if n > instruction.config.data.clients:
        clients = instruction.config.data.clients
        raise RefusalError("cohort", f"above the {clients} clients of the federation")


def check_replay(instruction: Instruction, lines: Lines) -> None:
    """RefusalError for an instruction that was answered before."""
    if instruction.sha256.hex() in lines.answered:
        raise RefusalError("replay", "this instruction was answered before")
    # A server that rewinds its ledger could run a round again and show an auditor one of the two.
    if any(
        answer.run == instruction.run and answer.round >= instruction.round
        for answer in lines.accepted
    ):
        raise RefusalError("replay", "this run's round, or a later one, was answered before")


def check_spend(policy: Policy, instruction: Instruction, spent: Sequence[Answer]) -> None:
    """No participation too many, and no budget passed by all that `spent` and this round cost."""
    if policy.limits is None:
        _check_agreed_spend(instruction, spent)
        return
    limits, config = policy.limits, instruction.config
    if len(spent) >= limits.max_participations:
        raise RefusalError("participations", "this device has taken part as often as it may")
    if config.privacy.max_participations is not None:
        # A report's claims count on devices to hold the run's own cap, too.
        alike = sum(answer.config == instruction.config_sha256 for answer in spent)
        if alike >= participations(config):
            raise RefusalError("participations", "this device has taken part as often as it may")
    events = life_events([*spent, answer_to(instruction)])
    for row, budget in limits.budgets.items():
        if life_epsilon(events, row, limits.delta) > budget:
            raise _budget(row)


def life_events(spent: Sequence[Answer]) -> list[Event]:
    """The events of a device's life, stated for one unit.

    Where all rounds protected clients, for clients. Else for one conversation, by which a client's
    update, at most C long, changes by at most 2 C: the sensitivities of such rounds are doubled.
    """
    if all(answer.mode.startswith("client/") for answer in spent):
        return [answer.event for answer in spent]
    return [
        _doubled(answer.event) if answer.mode.startswith("client/") else answer.event
        for answer in spent
    ]


def _doubled(event: Event) -> Event:
    if isinstance(event, SkellamSum):
        return replace(event, l2=2 * event.l2, l1=2 * event.l1)
    return replace(event, l2=2 * event.l2) if isinstance(event, GaussianSum) else event


def _check_agreed(own: Config, instruction: Instruction) -> None:
    for section in AGREED:
        # One rule for all: what this device agreed to when it joined, and nothing weaker.
        if getattr(instruction.config, section) != getattr(own, section):
            raise RefusalError(f"config.{section}", "differs from this device's own")
    if instruction.config.data.clients != own.data.clients:
        # A simulated cohort's noise is scaled by it (privacy.hypothetical).
        raise RefusalError("config.data.clients", "differs from this device's own")


def _check_limits(limits: Limits, seed: int | None, instruction: Instruction) -> None:
    config = instruction.config
    privacy, secagg, mode = config.privacy, config.secagg, mode_of(config)
    if not instruction.is_masked:
        raise RefusalError("masks", "updates in clear are for simulations alone")
    if mode not in limits.modes:
        raise RefusalError("mode", f"{mode} is not among the modes that this device allows")
    if config.seed != seed:
        raise RefusalError("seed", "predictable randomness is NOT PRIVATE, and not allowed here")
    if privacy.hypothetical is not None:
        raise RefusalError("hypothetical", "noise of a pretended cohort is for simulations alone")
    if privacy.noise_multiplier < limits.min_noise_multiplier:
        raise RefusalError(
            "noise",
            f"noise_multiplier {privacy.noise_multiplier:g} is below this device's least, "
            f"{limits.min_noise_multiplier:g}",
        )
    if privacy.clip_norm > limits.max_clip_norm:
        raise RefusalError(
            "clip_norm",
            f"{privacy.clip_norm:g} is above this device's most, {limits.max_clip_norm:g}",
        )
    examples = privacy.unit == "client" and config.train.expected_batch_size
    steps, clients = config.train.local_steps, config.data.clients
    if steps > limits.max_local_steps or steps * (examples or 1) > limits.max_examples:
        raise RefusalError("work", "more local steps, or examples in them, than this device allows")
    if config.train.draws > limits.max_draws:
        raise RefusalError(
            "work",
            f"{config.train.draws} draws are above this device's most, {limits.max_draws}",
        )
    if clients > limits.max_clients:
        raise RefusalError(
            "cohort", f"{clients} clients are above this device's most, {limits.max_clients}"
        )
    if secagg.threshold < limits.min_cohort:
        raise RefusalError(
            "cohort",
            f"a sum of {secagg.threshold} devices is below this device's least, "
            f"{limits.min_cohort}",
        )
    if secagg.max_colluding < limits.min_colluding:
        raise RefusalError(
            "colluding",
            f"max_colluding {secagg.max_colluding} is below this device's least, "
            f"{limits.min_colluding}",
        )
    if config.model.start not in limits.model_starts:
        raise RefusalError("start_model", "is not among those that this device allows")


def _check_memory(policy: Policy, instruction: Instruction) -> None:
    """Else memory or time would run out where a record was drawn, and nowhere else."""
    config = instruction.config
    if policy.limits is not None:
        config = config.placed(policy.placement)
        if config.train.draws > policy.max_physical_batch:
            raise RefusalError(
                "work",
                f"{config.train.draws} draws of a conversation, which are computed at once, are "
                f"above this device's max_physical_batch, {policy.max_physical_batch}",
            )
    most = config.train.max_batch_bytes
    if most is None:
        return
    try:
        taken = bytes_per_conversation(config)
    except ConfigError:
        raise RefusalError("dimension", "trains what the model installed here has not") from None
    if taken > most:
        raise RefusalError(
            "work", f"one conversation takes {taken} bytes, above max_batch_bytes, {most}"
        )


def _check_agreed_spend(instruction: Instruction, spent: Sequence[Answer]) -> None:
    config = instruction.config
    if len(spent) >= participations(config):
        raise RefusalError("participations", "this device has taken part as often as it may")
    events = life_events([*spent, answer_to(instruction)])
    try:
        passed = passed_budgets(config, instruction.dimension, events)
    except PrivacyError:
        raise RefusalError("budget", "cannot be priced with what was spent before") from None
    if passed:
        raise _budget(passed[0])


def answer_to(instruction: Instruction) -> Answer:
    """What the device's ledger says of an instruction."""
    return Answer(
        instruction=instruction.sha256.hex(),
        run=instruction.run,
        round=instruction.round,
        config=instruction.config_sha256,
        mode=mode_of(instruction.config),
        event=instruction.event,
    )


def _budget(row: Row) -> RefusalError:
    return RefusalError("budget", f"epsilon against {row} would pass its budget")
