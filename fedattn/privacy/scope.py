"""What the claims of a report rest on, and what they leave out: sentences for people.

They follow from the config alone, so that an audit derives them again.
"""

from __future__ import annotations

from fedattn.config import Config
from fedattn.privacy.masks import masks_assumptions
from fedattn.privacy.sentences import HONEST_BUT_CURIOUS, Sentences, labels


def assumptions(config: Config, authority_held_by: str | None = None) -> Sentences:
    """What must be true for the claims to hold and no audit of a report can see.

    authority_held_by: who certified the devices, as the ledger declares; None: not known yet.
    """
    common = (
        "The data set named in this report is what neighbours are defined on: it was built by "
        "rules that decide on each conversation by itself.",
        "Each identity key in the roster belongs to one device and is known to that device alone.",
    )
    if config.privacy.unit == "none":
        return common
    return (
        _devices(config),
        *_server(config),
        "The server ran no rounds beside those of this ledger, in a run that it shows to nobody; "
        "devices count those, too, and answer no round of a run twice.",
        "Noise and sampling came from the operating system's entropy and were kept secret.",
        *masks_assumptions(config),
        *_secure_aggregation(config, authority_held_by),
        _arithmetic(config),
        "How long a device took to answer, and whether it answered, revealed nothing about its "
        "data.",
        *common,
    )


def _devices(config: Config) -> str:
    noise = {
        "local": ", and added the stated noise in every step",
        "distributed": ", and added its share of the stated noise in every round that it answered",
        "server": "",
    }[config.privacy.noise]
    if config.privacy.unit == "client":
        did = "it clipped its update to the stated norm"
    else:
        did = (
            "it sampled its conversations secretly and independently at the stated rate, clipped "
            "each one's gradient to the stated norm"
        )
    return f"Every device ran this version of fedattn unmodified: {did}{noise}."


def _server(config: Config) -> Sentences:
    found = []
    if config.privacy.noise == "server":
        found.append(
            "The server added the stated noise to every sum before it used it, and neither kept "
            "nor showed a sum without noise."
        )
    if config.privacy.client_rate < 1:
        found.append(
            "For the outsider's row: the server drew each round's clients independently at the "
            "stated rate, told nobody but them, and made up for the noise of shares that dropped "
            "out."
            if config.privacy.noise == "distributed"
            else "For the outsider's row: the server drew each round's clients independently at "
            "the stated rate and told nobody but them."
        )
    return tuple(found)


def _secure_aggregation(config: Config, authority_held_by: str | None) -> Sentences:
    if config.privacy.noise != "distributed":
        return ()
    return (
        "The primitives of secure aggregation (X25519, Ed25519, HKDF-SHA256, AES-256, SHA-256) "
        "resist whoever attacks them; the rows of server and collusion bound adversaries of "
        "limited computing power.",
        _authority(authority_held_by),
        f"No more than {config.secagg.max_colluding} of a round's clients shared what they know "
        "with the server or with each other, and they were fixed before the round's masks were "
        "agreed.",
    )


def _authority(held_by: str | None) -> str:
    certifier = "The authority that certified the devices' keys, and that devices pinned,"
    if held_by == "server":
        return (
            f"{certifier} was held by the server, which could have certified devices of its own: "
            f"{HONEST_BUT_CURIOUS}"
        )
    if held_by == "simulation":
        return f"{certifier} was played by the party that simulated everybody: {HONEST_BUT_CURIOUS}"
    named = "" if held_by is None else f" was held by {held_by}, as the server declares, and"
    return (
        f"{certifier}{named} is not the server; if one party is both, the rows of server and "
        "collusion hold only against a server that follows the protocol."
    )


def _arithmetic(config: Config) -> str:
    if config.privacy.noise == "local":
        return (
            "Gradients, norms and sums are computed in floating point: their roundings are assumed "
            "to stay within the margin below clip_norm to which records are clipped. The noise and "
            "the noised sum lie on one grid, so their low bits reveal nothing."
        )
    return (
        "Gradients, norms, sums and rotations are computed in floating point: their roundings are "
        "assumed not to move neighbouring sums further apart than the stated sensitivity."
    )


def caveats(config: Config, authority_held_by: str = "simulation") -> Sentences:
    """What the claims do not cover, for a person to read; a deployment is no simulation."""
    return (
        *labels(config),
        *_unit(config),
        "Participation is not hidden: the server sees which devices take part and when.",
        "Timing and message sizes on the network are not covered.",
        *_sums(config),
        "The held-out conversations that measure quality were read by the server in clear and "
        "are not covered; sample replies answer openers of our own.",
        "Learning rate, clip norm and other settings were chosen outside this budget; if they were "
        "tuned on the same conversations, that tuning is not counted.",
        "Other runs on the same conversations add to what is spent here; this report covers one.",
        "An audit of this report shows that its accounting is consistent, not that devices added "
        "noise or sampled honestly.",
        *_simulated(authority_held_by),
        *_hypothetical(config),
        *_start(config),
    )


def _simulated(authority_held_by: str) -> Sentences:
    if authority_held_by != "simulation":
        return ()
    return (
        "This was a simulation: one party held all devices' data and keys, so the separation "
        "between server and devices was not tested by it.",
    )


def _unit(config: Config) -> Sentences:
    if config.privacy.unit == "conversation":
        return (
            "The unit is one conversation. A person who took part in several is protected less: "
            "the guarantee for k conversations together weakens as k grows.",
            "What a person said in conversations owned by partners counts as those conversations "
            "and is not protected at the level of the person.",
        )
    if config.privacy.unit == "client":
        who = {
            "person": "is one person",
            "hash": "may hold the conversations of several owners, all protected as one",
        }[config.data.assign]
        return (
            f"The unit is the conversations that one client owns; here a client {who}.",
            "What a person said in conversations owned by partners is protected with the "
            "partner's, and not as a part of this person's.",
        )
    return ()


def _sums(config: Config) -> Sentences:
    if not config.is_summed_noise:
        return ()
    found = [
        "That a round was skipped or aborted, and when, is visible; it is assumed to depend on "
        "nothing that is protected.",
        "A participant can spoil a sum unnoticed: this report says nothing about the model's "
        "integrity.",
    ]
    if config.privacy.noise == "distributed":
        found.append(
            "Skellam noise is priced by Renyi differential privacy at integer orders, by two "
            "implementations written apart: epsilon is an upper bound, and how far above the "
            "truth is not known."
        )
    return tuple(found)


def _hypothetical(config: Config) -> Sentences:
    wanted = config.privacy.hypothetical
    if wanted is None:
        return ()
    return (
        "The hypothetical rows are those of another run, with thresholds and collusion scaled to "
        f"its cohorts of {wanted.cohort}; no such run took place, and how well it would learn is "
        "guessed from this one, whose cohorts are smaller.",
    )


def _start(config: Config) -> Sentences:
    found = []
    if config.model.start == "public":
        found.append(
            "Training started from a public checkpoint; what that checkpoint learned from public "
            "text is not covered."
        )
    elif config.model.start != "random":
        found.append(
            "Training started from a checkpoint given by path; if it was trained on private text, "
            "that is not counted here."
        )
    if config.data.clients == 1:
        found.append("With one client there is nothing to aggregate: its update is the sum.")
    return tuple(found)
