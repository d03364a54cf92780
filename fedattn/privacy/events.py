"""What happened, apart from what it cost.

An event states a mechanism that ran, mathematically and completely: an accountant needs nothing
else to price it, and a ledger stores nothing else. Adjacency: add or remove one conversation, or
zero out one client. What an adversary sees of an event is in `rows`.
A further mechanism is one more frozen dataclass in `EVENT_TYPES`, with its own accountants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeAlias

from fedattn.config import Config
from fedattn.errors import PrivacyError
from fedattn.mechanism import Mechanism
from fedattn.noise import grid_growth


@dataclass(frozen=True, order=True)
class PoissonGaussian:
    """`steps` adaptively chosen releases of a Poisson-subsampled Gaussian mechanism.

    Each step draws S by taking every record independently with probability q and releases
    f(S) + N(0, (sigma C)^2 I), where one record changes f(S) by at most C in l2 norm (add/remove).
    Abadi et al. 2016, arXiv 1607.00133, Algorithm 1.

    >>> PoissonGaussian(sampling_rate=0.1, noise_multiplier=1.0, steps=0)
    Traceback (most recent call last):
        ...
    fedattn.errors.PrivacyError: poisson_gaussian: steps is 0, must be an integer of at least 1
    """

    kind: ClassVar[str] = "poisson_gaussian"

    sampling_rate: float  # q in (0, 1]: of each record in each step, independently
    noise_multiplier: float  # sigma > 0: noise standard deviation over the sensitivity C
    steps: int  # T >= 1: releases

    def __post_init__(self) -> None:
        _require_rate(self.kind, "sampling_rate", self.sampling_rate)
        _require_positive(self.kind, "noise_multiplier", self.noise_multiplier)
        _require_count(self.kind, "steps", self.steps)


@dataclass(frozen=True, order=True)
class NoNoise:
    """Something that depends on records left without noise: no finite epsilon bounds it."""

    kind: ClassVar[str] = "no_noise"


@dataclass(frozen=True, order=True)
class SkellamSum:
    """One release of an integer sum under secure aggregation with Skellam noise in shares.

    Grid units; neighbouring sums are integer vectors at most `l2` and `l1` apart. Each variance is
    per coordinate and guaranteed in every round that is released, whoever drops out.
    Agarwal, Kairouz and Liu 2021, arXiv 2110.04995.
    """

    kind: ClassVar[str] = "skellam_sum"

    l2: float  # D2 > 0
    l1: float  # D1 > 0
    coordinates: int  # of the vector, padding included
    released_variance: float  # in the release: for who sees nothing else
    participant_variance: float  # without the share of one participant
    honest_variance: float  # without the shares of `secagg.max_colluding` survivors
    share_variance: float  # of one device alone
    record_rate: float  # secret Poisson rate of a unit inside its device; 1: no sampling
    client_rate: float  # secret Poisson rate of a client, drawn by the server; 1: all take part
    most_clients: int  # shares drawn in a round at most

    def __post_init__(self) -> None:
        for name in (
            "l2",
            "l1",
            "released_variance",
            "participant_variance",
            "honest_variance",
            "share_variance",
        ):
            _require_positive(self.kind, name, getattr(self, name))
        for name in ("record_rate", "client_rate"):
            _require_rate(self.kind, name, getattr(self, name))
        for name in ("coordinates", "most_clients"):
            _require_count(self.kind, name, getattr(self, name))


@dataclass(frozen=True, order=True)
class GaussianSum:
    """One release of an integer sum to which the server, trusted, adds N(0, variance I).

    Grid units; neighbouring sums are at most `l2` apart. The server sees the sum without noise.
    """

    kind: ClassVar[str] = "gaussian_sum"

    l2: float  # D2 > 0
    variance: float  # per coordinate
    record_rate: float  # as in SkellamSum
    client_rate: float

    def __post_init__(self) -> None:
        for name in ("l2", "variance"):
            _require_positive(self.kind, name, getattr(self, name))
        for name in ("record_rate", "client_rate"):
            _require_rate(self.kind, name, getattr(self, name))


def _require_positive(kind: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PrivacyError(f"{kind}: {name} must be a number")
    if not (math.isfinite(value) and value > 0):
        raise PrivacyError(f"{kind}: {name} is {value}, must be above 0")


def _require_rate(kind: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PrivacyError(f"{kind}: {name} must be a number")
    if not 0 < value <= 1:
        raise PrivacyError(f"{kind}: {name} is {value}, must be in (0, 1]")


def _require_count(kind: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PrivacyError(f"{kind}: {name} is {value}, must be an integer of at least 1")


Event: TypeAlias = PoissonGaussian | SkellamSum | GaussianSum | NoNoise
EVENT_TYPES: Mapping[str, type[Event]] = {
    each.kind: each for each in (PoissonGaussian, SkellamSum, GaussianSum, NoNoise)
}


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as plain JSON values, its `kind` first.

    >>> event_to_dict(NoNoise())
    {'kind': 'no_noise'}
    """
    return {"kind": event.kind, **asdict(event)}


def event_from_dict(raw: object) -> Event:
    """The event in `raw`; PrivacyError names an unknown kind, an unknown or missing key, a value.

    >>> event_from_dict({"kind": "no_noise"})
    NoNoise()
    """
    if not isinstance(raw, Mapping):
        raise PrivacyError("event: must be an object with `kind`")
    event_type = EVENT_TYPES.get(str(raw.get("kind")))
    if event_type is None:
        raise PrivacyError(
            f"event: unknown kind {raw.get('kind')!r}; this version knows {', '.join(EVENT_TYPES)}"
        )
    wanted = {"kind", *(field.name for field in fields(event_type))}
    if wrong := sorted(wanted.symmetric_difference(map(str, raw))):
        raise PrivacyError(f"event {event_type.kind}: unknown or missing key {', '.join(wrong)}")
    return event_type(**{key: value for key, value in raw.items() if key != "kind"})


def _require_fine_grid(config: Config, dimension: int) -> None:
    """PrivacyError if rounding to the noise's grid could use up what clipping keeps free.

    Records are clipped to C (1 - 1e-3) (`clipping.CLIP_MARGIN`); half of what that leaves of C is
    the grid's. Reached by 10^7 parameters at a noise multiplier of about 10.
    """
    privacy = config.privacy
    growth = grid_growth(privacy.noise_multiplier * privacy.clip_norm, dimension)
    if growth > 5e-4 * privacy.clip_norm:
        raise PrivacyError(
            f"noise_multiplier {privacy.noise_multiplier:g} over {dimension} trainable parameters: "
            f"rounding to the noise's grid moves sums by {growth / privacy.clip_norm:.1e} of "
            "clip_norm, at most 5e-4 is accounted for; train fewer parameters or lower it"
        )


def round_event(config: Config, dimension: int) -> Event:
    """What one round of `config` does to a unit: the event that its intent must state.

    The same for every round and client: steps and rates are public, a unit has one owner, and
    guaranteed variances are those of the worst cohort that is accepted. dimension: d, trainable
    parameters.
    """
    privacy = config.privacy
    if privacy.unit == "none":
        return NoNoise()
    if privacy.noise == "local":
        _require_fine_grid(config, dimension)
        return PoissonGaussian(
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=privacy.noise_multiplier,
            steps=config.train.local_steps,
        )
    mechanism = Mechanism(config, dimension)
    record_rate = privacy.sampling_rate if privacy.unit == "conversation" else 1.0
    if privacy.noise == "server":
        return GaussianSum(
            l2=mechanism.l2,
            variance=mechanism.variance,
            record_rate=record_rate,
            client_rate=privacy.client_rate,
        )
    return SkellamSum(
        l2=mechanism.l2,
        l1=mechanism.l1,
        coordinates=mechanism.padded,
        released_variance=mechanism.released_variance,
        participant_variance=mechanism.participant_variance,
        honest_variance=mechanism.variance,
        share_variance=mechanism.smallest_share,
        record_rate=record_rate,
        client_rate=privacy.client_rate,
        most_clients=config.data.clients,
    )
