"""What happened, apart from what it cost.

An event states a mechanism that ran, mathematically and completely: an accountant needs nothing
else to price it, and a ledger stores nothing else. Adjacency: add or remove one conversation.
A further mechanism is one more frozen dataclass in `EVENT_TYPES`, with its own accountants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeAlias

from fedattn.config import Config
from fedattn.errors import PrivacyError


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
        q, sigma, steps = self.sampling_rate, self.noise_multiplier, self.steps
        for name, value in (("sampling_rate", q), ("noise_multiplier", sigma)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PrivacyError(f"{self.kind}: {name} must be a number")
        if not 0 < q <= 1:
            raise PrivacyError(f"{self.kind}: sampling_rate is {q}, must be in (0, 1]")
        if not (math.isfinite(sigma) and sigma > 0):
            raise PrivacyError(f"{self.kind}: noise_multiplier is {sigma}, must be above 0")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise PrivacyError(f"{self.kind}: steps is {steps}, must be an integer of at least 1")


@dataclass(frozen=True, order=True)
class NoNoise:
    """Something that depends on records left without noise: no finite epsilon bounds it."""

    kind: ClassVar[str] = "no_noise"


Event: TypeAlias = PoissonGaussian | NoNoise
EVENT_TYPES: Mapping[str, type[Event]] = {
    PoissonGaussian.kind: PoissonGaussian,
    NoNoise.kind: NoNoise,
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


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same events with equal mechanisms joined, in one order: composition is commutative.

    >>> a = PoissonGaussian(0.1, 1.0, 2)
    >>> merge([a, NoNoise(), a, NoNoise()])
    (NoNoise(), PoissonGaussian(sampling_rate=0.1, noise_multiplier=1.0, steps=4))
    """
    steps: dict[tuple[float, float], int] = {}
    noiseless = False
    for event in events:
        if isinstance(event, NoNoise):
            noiseless = True
        else:
            key = (event.sampling_rate, event.noise_multiplier)
            steps[key] = steps.get(key, 0) + event.steps
    gaussians = [PoissonGaussian(*key, steps[key]) for key in sorted(steps)]
    return (*([NoNoise()] if noiseless else []), *gaussians)


def round_event(config: Config) -> Event:
    """What one round of `config` does to a conversation: the event that its intent must state.

    Every client takes `local_steps` whatever data it holds, and a conversation has one owner, so
    the event is equal for all clients and composes over rounds alone.
    """
    if config.privacy.unit == "none":
        return NoNoise()
    return PoissonGaussian(
        sampling_rate=config.privacy.sampling_rate,
        noise_multiplier=config.privacy.noise_multiplier,
        steps=config.train.local_steps,
    )
