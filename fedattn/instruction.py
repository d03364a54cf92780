"""The round's one instruction: what every client of a round follows, or masks do not cancel.

A canonical JSON document; its SHA-256 is in every signature and every key derivation of secure
aggregation and in the ledger's intent. It holds all that decides what a device computes: the
config, the model, the mechanism, the codec, the roster and the ledger head before the round.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from fedattn.config import Config, config_from_dict
from fedattn.encoding import RoundCodec, codec_of, codec_seed
from fedattn.errors import PrivacyError, ProtocolError, UpdateError
from fedattn.mechanism import threshold_of
from fedattn.privacy.events import Event, event_from_dict, event_to_dict, round_event
from fedattn.secagg import RoundSpec, graph

FORMAT = "fedattn-instruction/4"


@lru_cache(maxsize=64)
def _parameters(n: int, colluding: float, dropouts: float, quorum: int) -> tuple[int, int]:
    return graph.parameters(n, colluding, dropouts, quorum=quorum)


@dataclass(frozen=True)
class Instruction:
    """Everything one round is about; `document` are the bytes that are hashed."""

    config: Config
    run: str  # hash of the ledger's first line: which run this is
    round: int
    start_sha256: str  # the model training started from, which devices have installed
    model_sha256: str  # the model this round starts from
    dimension: int  # d, trainable parameters
    ledger_head: str
    roster: tuple[bytes, ...]  # of this round: raw Ed25519 public keys; client i is entry i - 1
    event: Event

    @cached_property
    def document(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        fields = {
            "format": FORMAT,
            "config": self.config.model_dump(mode="json"),
            "run": self.run,
            "round": self.round,
            "start_sha256": self.start_sha256,
            "model_sha256": self.model_sha256,
            "dimension": self.dimension,
            "ledger_head": self.ledger_head,
            "roster": [key.hex() for key in self.roster],
            "event": event_to_dict(self.event),
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def sha256(self) -> bytes:
        """The 32-byte hash of `document`."""
        return hashlib.sha256(self.document).digest()

    @cached_property
    def config_sha256(self) -> str:
        """The config's own hash."""
        return self.config.sha256()

    @cached_property
    def demanded_event(self) -> Event:
        """What the config makes of a round of this dimension: what `event` must be."""
        return round_event(self.config, self.dimension)

    @cached_property
    def is_computable(self) -> bool:
        """Whether codec and protocol can be followed to the end, whatever the vector.

        ProtocolError("spec.*" | "graph.*") for a round that cannot be.
        """
        try:
            self.codec.require_encodable()
            _ = self.spec
        except (UpdateError, PrivacyError):
            return False
        return True

    @property
    def is_masked(self) -> bool:
        """Whether masks hide each upload; else whoever runs the round sees all of them."""
        return self.config.secure_aggregation == "masked"

    @cached_property
    def spec(self) -> RoundSpec:
        """The secure-aggregation round that this instruction sets."""
        secagg, codec = self.config.secagg, self.codec
        is_complete = secagg.graph == "complete" or not self.is_masked
        degree, share_threshold = (0, 0) if is_complete else self._neighbours
        return RoundSpec(
            instruction_hash=self.sha256,
            round=self.round,
            roster=self.roster,
            threshold=self.threshold,
            max_colluding=secagg.max_colluding,
            dimension=codec.length,
            modulus_bits=codec.modulus_bits,
            degree=degree,
            share_threshold=share_threshold,
            is_masked=self.is_masked,
        )

    @property
    def _neighbours(self) -> tuple[int, int]:
        """(k, t) of the cohort, or (0, 0) where the complete graph is cheaper or as cheap."""
        secagg, n = self.config.secagg, len(self.roster)
        if self.threshold > n - graph.members_of(n, secagg.dropout_share):
            return 0, 0  # a cohort that may lose nobody
        degree, shares = _parameters(
            n, secagg.max_colluding / n, secagg.dropout_share, self.threshold
        )
        return (degree, shares) if degree else (0, 0)

    @property
    def threshold(self) -> int:
        """T: survivors that this round needs."""
        return threshold_of(self.config, len(self.roster))

    @cached_property
    def codec(self) -> RoundCodec:
        """The codec that this instruction sets, with the round's rotation and dithers."""
        seed = codec_seed(self.config, self.round, self.sha256)
        return codec_of(self.config, self.dimension, len(self.roster), seed)

    @classmethod
    def parse(cls, document: bytes) -> Instruction:
        """Read a document; ProtocolError unless it is canonical, so that its hash names it.

        The last few are remembered, for every stage of a round (and, in a simulation, every
        device of a process) reads the same one.
        """
        return _parsed(document)

    @classmethod
    def _read(cls, document: bytes) -> Instruction:
        try:
            raw: dict[str, Any] = json.loads(document)
            if raw.pop("format") != FORMAT:
                raise ValueError
            instruction = cls(
                config=config_from_dict(raw["config"]),
                run=str(raw["run"]),
                round=int(raw["round"]),
                start_sha256=str(raw["start_sha256"]),
                model_sha256=str(raw["model_sha256"]),
                dimension=int(raw["dimension"]),
                ledger_head=str(raw["ledger_head"]),
                roster=tuple(bytes.fromhex(key) for key in raw["roster"]),
                event=event_from_dict(raw["event"]),
            )
        except Exception:
            raise ProtocolError("instruction.format", f"not a {FORMAT} document") from None
        if instruction.document != document:
            raise ProtocolError("instruction.canonical", "the document is not in canonical form")
        return instruction


@lru_cache(maxsize=4)
def _parsed(document: bytes) -> Instruction:
    return Instruction._read(document)
