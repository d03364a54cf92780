"""What a ledger entry may say: one strict shape per kind (DESIGN section 6).

A further kind of entry is one more model in `BODIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fedattn.errors import LedgerError, PrivacyError
from fedattn.privacy.events import Event, event_from_dict

LEDGER_FORMAT: Final = "fedattn-ledger/5"
TORN_BYTES: Final = 4096  # of a line that was cut off, this many are kept
SIMULATION: Final = "simulation"  # the holder of an authority that one party plays with all others
SIMULATED: Final = "simulate"  # what creates such a run

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256 or a raw public key, in hex
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Count = Annotated[int, Field(ge=0)]
Round = Annotated[int, Field(ge=1)]
Party = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]  # as one line of text
Outcome: TypeAlias = Literal["completed", "budget", "interrupted", "aborted"]
SecureAggregation: TypeAlias = Literal["masked", "arithmetic"]
AbortReason: TypeAlias = Literal["threshold", "protocol", "decode", "interrupted", "error"]


def _priceable(event: dict[str, Any]) -> dict[str, Any]:
    try:
        event_from_dict(event)
    except PrivacyError as error:
        raise ValueError(str(error)) from None
    except OverflowError:
        raise ValueError("event: a number that no run has") from None
    return event


class Body(BaseModel):
    """The body of an entry: unknown keys and quiet type changes are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Open(Body):
    """The first entry: what the run is about to do, with which data, keys and weights."""

    format: Literal["fedattn-ledger/5"] = LEDGER_FORMAT
    fedattn_version: str
    config: dict[str, Any]
    config_sha256: Hash
    data_set: str
    server_public_key: Hash
    roster: list[Hash]  # identity public keys of the devices
    model_sha256: Hash
    start_sha256: Hash  # of the whole model that training started from
    dimension: Round  # trainable parameters
    engine: str
    created_by: str
    secure_aggregation: SecureAggregation  # as the config says; arithmetic: masks were skipped
    authority_held_by: Party  # who certified the devices: "simulation", "server", or a name


class Intent(Body):
    """A round is about to start; from here on its event is spent, whatever follows."""

    round: Round
    instruction_sha256: Hash
    event: Annotated[dict[str, Any], AfterValidator(_priceable)]
    threshold: Round
    cohort: Round
    roster: list[Hash]  # identity keys of the round's clients, in the order of `open`
    model_before: Hash

    @property
    def priced(self) -> Event:
        """The event in typed form."""
        return event_from_dict(self.event)


class Release(Body):
    """A round ended with a new model."""

    round: Round
    intent: Hash  # of the intent's line
    survivors: Count
    survivors_sha256: Hash
    survivor_commitments: list[Hash]  # salted; says who to whom holds the salt
    cosignatures: list[Signature]  # of survivors, over instruction, survivors and intent
    model_before: Hash
    model_after: Hash


class Abort(Body):
    """A round ended without a new model; its event stays spent."""

    round: Round
    intent: Hash
    stage: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
    reason: AbortReason


class Skip(Body):
    """A round that did not start: the server drew too few clients. Nothing was sent or spent."""

    round: Round
    reason: Literal["cohort"]


class Resume(Body):
    """A run that was cut off goes on: what it found, and what it goes on from."""

    open_intent: Hash | None  # of an intent without an outcome: it stays spent, it is not retried
    model: Hash  # of the last release, or the start
    roster: list[Hash]  # of the run's devices, those that enrolled again; none if no round is left
    torn: Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", max_length=2 * TORN_BYTES)] | None
    torn_bytes: Count  # all of a last line that was cut off; `torn` is how it begins, in hex


class Close(Body):
    """The last entry."""

    outcome: Outcome
    released: Count
    aborted: Count
    skipped: Count
    model_sha256: Hash


AnyBody: TypeAlias = Open | Intent | Release | Abort | Skip | Resume | Close
BODIES: Mapping[str, type[AnyBody]] = {
    "open": Open,
    "intent": Intent,
    "release": Release,
    "abort": Abort,
    "skip": Skip,
    "resume": Resume,
    "close": Close,
}


def parse_body(kind: str, raw: object) -> AnyBody:
    """The typed body of an entry; LedgerError names the kind, the key and the rule."""
    body_type = BODIES.get(kind)
    if body_type is None:
        raise LedgerError(f"unknown kind {kind!r}; this version knows {', '.join(BODIES)}")
    try:
        return body_type.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or kind}: {item['msg']}" for item in error.errors()
        )
        raise LedgerError(f"{kind}: {problems}") from None
