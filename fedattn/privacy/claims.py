"""What may be claimed, to whom, on which assumptions: the sentences and numbers of a report.

Everything here follows from the config and the events alone, so that an audit derives it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from fedattn.config import Config
from fedattn.privacy.accountants import spend
from fedattn.privacy.events import Event

OUTSIDER = "an outsider who sees the released models"
SERVER = "the server or a curious participant"
COLLUSION = "the server colluding with other clients"
UNMASKED = "whoever breaks secure aggregation and sees one client's unmasked update"
ADVERSARIES = (OUTSIDER, SERVER, COLLUSION, UNMASKED)

NOT_PRIVATE = "NOT PRIVATE"
SEEDED = (
    f"{NOT_PRIVATE}: seeded - all noise and keys follow from a seed that anyone can repeat; "
    "the epsilon in the totals is what these events would cost with secret noise"
)
NO_NOISE = f"{NOT_PRIVATE}: no noise, epsilon = infinity"

Sentences: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """Against `adversary`, each `unit` has (epsilon, delta)-DP if the `assumptions` hold."""

    adversary: str
    epsilon: float
    delta: float
    unit: str
    assumptions: Sentences


def claims(config: Config, events: Iterable[Event]) -> tuple[Claim, ...]:
    """One claim per adversary row of DESIGN section 4, in its order.

    With noise `local` all four are equal: each device adds its full noise before anything leaves
    it, so the guarantee relies neither on aggregation nor on who was sampled, and other clients'
    help does not lower it. Without noise, or with noise from a seed, all four are infinite.
    """
    epsilon = spend(events, config.privacy.delta).epsilon if config.is_private else math.inf
    return tuple(
        Claim(adversary, epsilon, config.privacy.delta, config.privacy.unit, reasons)
        for adversary, reasons in _reasons(config).items()
    )


def _reasons(config: Config) -> dict[str, Sentences]:
    if not config.is_private:
        return {adversary: labels(config) for adversary in ADVERSARIES}
    return {
        OUTSIDER: (
            "Released models are post-processing of updates that were noised on each device; no "
            "amplification by sampling clients is counted.",
        ),
        SERVER: (
            "Each device added its full noise before its update left it, so seeing the sums, and "
            "who took part, adds nothing.",
        ),
        COLLUSION: (
            "Holds whichever other clients collude, even all of them: no device relies on the "
            "noise of another.",
        ),
        UNMASKED: (
            "One client's unmasked update carries that client's full noise; secure aggregation is "
            "a second wall, not the source of this guarantee.",
        ),
    }


def labels(config: Config) -> Sentences:
    """The loud sentences that every output of a run without privacy must carry."""
    found = []
    if config.privacy.unit == "none":
        found.append(NO_NOISE)
    if config.seed is not None:
        found.append(SEEDED)
    return tuple(found)


def assumptions(config: Config) -> Sentences:
    """What must be true for the claims to hold and no audit of a report can see."""
    common = (
        "The data set named in this report is what neighbours are defined on: it was built by "
        "rules that decide on each conversation by itself.",
        "Each identity key in the roster belongs to one device and is known to that device alone.",
    )
    if config.privacy.unit == "none":
        return common
    return (
        "Every device ran this version of fedattn unmodified: it sampled its conversations "
        "secretly and independently at the stated rate, clipped each one's gradient to the stated "
        "norm, and added the stated noise in every step.",
        "Noise and sampling came from the operating system's entropy and were kept secret.",
        "Arithmetic in floating point behaves as the real-number analysis does, up to roundings "
        "that reveal nothing.",
        "How long a device took to answer revealed nothing about its data.",
        *common,
    )


def caveats(config: Config) -> Sentences:
    """What the claims do not cover, for a person to read."""
    found = [*labels(config)]
    if config.privacy.unit == "conversation":
        found += [
            "The unit is one conversation. A person who took part in several is protected less: "
            "the guarantee for k conversations together weakens as k grows.",
            "What a person said in conversations owned by partners counts as those conversations "
            "and is not protected at the level of the person.",
        ]
    found += [
        "Participation is not hidden: the server sees which devices take part and when.",
        "Timing and message sizes on the network are not covered.",
        "The held-out conversations that measure quality were read by the server in clear and "
        "are not covered; sample replies answer openers of our own.",
        "Learning rate, clip norm and other settings were chosen outside this budget; if they were "
        "tuned on the same conversations, that tuning is not counted.",
        "Other runs on the same conversations add to what is spent here; this report covers one.",
        "An audit of this report shows that its accounting is consistent, not that devices added "
        "noise or sampled honestly.",
        "This was a simulation: one process held all devices' data and keys, so the separation "
        "between server and devices was not tested by it.",
    ]
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
