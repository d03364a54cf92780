"""What a report says in words: why a row holds, on which assumptions, and what it leaves out.

Everything here follows from the config alone, so that an audit derives it again.
"""

from __future__ import annotations

from typing import TypeAlias

from fedattn.config import ROWS, Config, Row
from fedattn.privacy.masks import masks_label, masks_reasons
from fedattn.privacy.rows import FAILURE_SHARE, amplification_failure, is_amplified, participations

Sentences: TypeAlias = tuple[str, ...]

NOT_PRIVATE, HYPOTHETICAL = "NOT PRIVATE", "HYPOTHETICAL"
SEEDED = (
    f"{NOT_PRIVATE}: seeded - all noise and keys follow from a seed that anyone can repeat; "
    "the epsilon in the totals is what these events would cost with secret noise"
)
HONEST_BUT_CURIOUS = (
    "the rows of server and collusion hold only against a server that follows the protocol and is "
    "merely curious."
)
_SERVER_CERTIFIES = (
    "The server itself held the authority that certified the devices: holds only against a server "
    "that follows the protocol and is merely curious."
)
NO_NOISE = f"{NOT_PRIVATE}: no noise, epsilon = infinity"


def labels(config: Config) -> Sentences:
    """The loud sentences that every output of a run must carry if it promises nothing.

    NOT PRIVATE: no noise, or noise that anyone can repeat. MASKS SKIPPED: updates were added in
    clear. HYPOTHETICAL: less noise than a real run would need, to study one that is larger.
    """
    found = [*_not_private(config), *masks_label(config)]
    wanted = config.privacy.hypothetical
    if wanted is not None:
        found.append(
            f"{HYPOTHETICAL}: noise as if {wanted.cohort} of {wanted.population} clients took "
            "part in a round; the real epsilon of this run is in the table beside"
        )
    return tuple(found)


def _not_private(config: Config) -> list[str]:
    found = []
    if config.privacy.unit == "none":
        found.append(NO_NOISE)
    if config.seed is not None:
        found.append(SEEDED)
    return found


def adjacency(config: Config) -> str:
    """What one unit more or less means."""
    if config.privacy.unit == "none":
        return "Nothing is protected, so no two data sets count as neighbours."
    if config.privacy.unit == "conversation":
        return "Neighbours differ in one conversation, added or removed."
    share = " and its share of the noise" if config.privacy.noise == "distributed" else ""
    return (
        "Neighbours differ in one client's conversations: the client takes part with its update, "
        f"or with a zero update{share} (zero-out)."
    )


def reasons(config: Config, authority_held_by: str | None = None) -> dict[Row, Sentences]:
    """For each adversary row: what it sees, which noise stands against it, what is assumed.

    A run without masks says so first in every row.
    authority_held_by: who certified the devices, as the ledger declares; None: not known yet.
    """
    first, found = masks_reasons(config), _reasons(config, authority_held_by)
    return {row: (*first[row], *found[row]) for row in ROWS}


def _reasons(config: Config, authority_held_by: str | None) -> dict[Row, Sentences]:
    if not config.is_private:
        return dict.fromkeys(ROWS, tuple(_not_private(config)))
    if config.privacy.noise != "distributed":
        return (_local if config.privacy.noise == "local" else _server)(config)
    found = _distributed(config)
    if authority_held_by == "server":
        found["server"] += (_SERVER_CERTIFIES,)
        found["collusion"] += (_SERVER_CERTIFIES,)
    return found


def _local(config: Config) -> dict[Row, Sentences]:
    cap = _cap(config)
    return {
        "outsider": (
            "Released models are post-processing of updates that were noised on each device; no "
            "amplification by sampling clients is counted.",
            *cap,
        ),
        "server": (
            "Each device added its full noise before its update left it, so seeing the sums, and "
            "who took part, adds nothing.",
            *cap,
        ),
        "collusion": (
            "Holds whichever other clients collude, even all of them: no device relies on the "
            "noise of another.",
            *cap,
        ),
        "unmasked": (
            "One client's unmasked update carries that client's full noise; secure aggregation is "
            "a second wall, not the source of this guarantee.",
            *cap,
        ),
    }


def _distributed(config: Config) -> dict[Row, Sentences]:
    t, c = config.secagg.threshold, config.secagg.max_colluding
    least = f"at least {t}" if config.privacy.client_rate < 1 else f"{t}"
    records, cap = _record_sampling(config), _cap(config)
    not_clients = "No amplification by sampling clients is counted."
    return {
        "outsider": (
            "Sees the released models alone: neither the server nor a participant, and no reader "
            "of the ledger.",
            f"The noise shares of all survivors that a round needs ({least}) are counted.",
            *_client_sampling(config),
            *records,
        ),
        "server": (
            "Sees who took part and every sum, and may be one participant, who knows its own "
            f"share: the shares of all but one of the survivors that a round needs ({least}) are "
            "counted.",
            not_clients,
            *records,
            *cap,
        ),
        "collusion": (
            f"What {_clients(c)} of the cohort know{'s' if c == 1 else ''} may be shared with the "
            f"server: the noise shares of the other survivors that a round needs ({least} less "
            f"{c}) are counted.",
            not_clients,
            *records,
            *cap,
        ),
        "unmasked": (
            "One client's unmasked update carries its own share of the noise alone, sized for a "
            "sum and not for an update.",
            not_clients,
            *records,
            *cap,
        ),
    }


def _sum(config: Config) -> str:
    return "securely aggregated sum" if config.secure_aggregation == "masked" else "sum"


def _server(config: Config) -> dict[Row, Sentences]:
    none = "No guarantee: the server, which is trusted in this mode, adds the noise"
    return {
        "outsider": (
            "Sees the released models alone: neither the server nor a participant, and no reader "
            "of the ledger.",
            f"The server, trusted, adds noise to each {_sum(config)} before anything that depends "
            "on the sum is released.",
            *_client_sampling(config),
            *_record_sampling(config),
        ),
        "server": (f"{none} and sees every sum without it.",),
        "collusion": (
            f"{none} and sees every sum without it; what colluding clients sent can be taken away "
            "from the sum.",
        ),
        "unmasked": (f"{none}; an update that leaves a device carries none.",),
    }


def _record_sampling(config: Config) -> Sentences:
    if config.privacy.unit != "conversation":
        return ()
    return (
        "Each device samples its conversations at rate "
        f"{config.privacy.sampling_rate:g}, in secret from the server too: counted.",
    )


def _client_sampling(config: Config) -> Sentences:
    privacy = config.privacy
    steady = "Assumes that a round's release does not hinge on whether one device is available."
    if privacy.client_rate == 1:
        everybody = "Every client is asked in each round: nothing is gained by sampling."
        return (everybody, steady, *_cap(config))
    failure = amplification_failure(config)
    if not is_amplified(config):
        return (
            f"Sampling clients at rate {privacy.client_rate:g} is not counted: a client drawn "
            "more often than it may answer, or a cohort whose size tells that it took part, is "
            f"too likely (probability {failure:.2g}, more than {FAILURE_SHARE:.0%} of delta).",
            steady,
            *_cap(config),
        )
    return (
        "Assumes an honest server that draws each round's clients in secret, independently at rate "
        f"{privacy.client_rate:g}, and releases a sum with one level of noise whoever took part; "
        "amplification by this is counted in this row alone.",
        f"Delta pays {failure:.2g} for a client drawn more often than it may answer, and for a "
        "cohort whose size tells that it took part.",
        steady,
    )


def _cap(config: Config) -> Sentences:
    most = participations(config)
    if most == config.train.rounds:
        return ()
    return (f"Counts at most {most} rounds of one device, which devices enforce themselves.",)


def _clients(count: int) -> str:
    return "one client" if count == 1 else f"up to {count} clients"
