"""What the server writes into the ledger of a run: the bodies of open, intent and release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fedattn import __version__
from fedattn.config import Config
from fedattn.data import describe
from fedattn.entries import SIMULATED, SIMULATION, Intent, Open, Release
from fedattn.errors import RunError
from fedattn.flower.rounds import RoundResult
from fedattn.instruction import Instruction
from fedattn.ledger import LedgerEntry
from fedattn.privacy.events import event_to_dict
from fedattn.randomness import Randomness


@dataclass(frozen=True)
class Terms:
    """On what a run goes, beside its config and keys."""

    authority_held_by: str  # who certified the devices; the ledger and the report say so
    created_by: str = "fedattn"
    nodes: Mapping[int, str] | None = None  # SHA-256 of their keys, where nodes are registered
    revoked: bytes = b""  # the authority's revocation list, PEM
    is_resumed: bool = False
    counters: Path | None = None  # what the server remembers of devices; none: in the run's folder

    def require_fit(self, config: Config) -> None:
        """RunError for a run without masks that is no simulation: someone could rely on them."""
        is_simulation = (self.authority_held_by, self.created_by) == (SIMULATION, SIMULATED)
        if config.secure_aggregation != "masked" and not is_simulation:
            raise RunError(
                f"secure_aggregation: {config.secure_aggregation} is for simulations alone, and "
                f"this run was created by {self.created_by!r} under an authority held by "
                f"{self.authority_held_by!r}; use `secure_aggregation: masked`"
            )


def opening(
    config: Config,
    terms: Terms,
    *,
    server_public_key: bytes,
    roster: tuple[bytes, ...],
    start_sha256: str,
    model_sha256: str,
    dimension: int,
    engine: str,
) -> Open:
    """A run begins, with these devices, from this model of `dimension` trainable parameters."""
    return Open(
        fedattn_version=__version__,
        config=config.model_dump(mode="json"),
        config_sha256=config.sha256(),
        data_set=describe(config.data),
        server_public_key=server_public_key.hex(),
        roster=[key.hex() for key in roster],
        start_sha256=start_sha256,
        model_sha256=model_sha256,
        dimension=dimension,
        engine=engine,
        created_by=terms.created_by,
        authority_held_by=terms.authority_held_by,
        secure_aggregation=config.secure_aggregation,
    )


def intent(instruction: Instruction) -> Intent:
    """A round is about to follow `instruction`."""
    return Intent(
        round=instruction.round,
        instruction_sha256=instruction.sha256.hex(),
        event=event_to_dict(instruction.event),
        threshold=instruction.threshold,
        cohort=len(instruction.roster),
        roster=[key.hex() for key in instruction.roster],
        model_before=instruction.model_sha256,
    )


def release(
    instruction: Instruction,
    entry: LedgerEntry,
    result: RoundResult,
    model_after: str,
    salts: Randomness,
) -> Release:
    """The round of the intent `entry` ended with the model `model_after`.

    Who survived is committed to under salts: checkable by whoever is given one, else opaque.
    """
    survivors = [instruction.roster[index - 1] for index in result.survivors]
    return Release(
        round=instruction.round,
        intent=entry.hash,
        survivors=len(survivors),
        survivors_sha256=result.survivors_sha256.hex(),
        survivor_commitments=sorted(sha256(salts.bytes(32) + k).hexdigest() for k in survivors),
        cosignatures=[signature.hex() for signature in result.cosignatures],
        model_before=instruction.model_sha256,
        model_after=model_after,
    )
