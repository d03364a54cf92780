"""A small finished run with real keys, real hashes and real co-signatures; parts can be forged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fedattn
from fedattn.config import Config, config_from_dict
from fedattn.instruction import Instruction
from fedattn.ledger import Ledger
from fedattn.privacy.events import event_to_dict, round_event
from fedattn.randomness import Randomness
from fedattn.report import Report, build_report, write_report
from fedattn.secagg import survivors_sha256
from fedattn.secagg.confirmation import sign_confirmation
from fedattn.signing import SigningKey, fingerprint

SERVER = SigningKey.generate(Randomness.seeded(1, "server"))
STRANGER = SigningKey.generate(Randomness.seeded(2, "stranger"))
DEVICES = [SigningKey.generate(Randomness.seeded(3, str(i))) for i in range(4)]
PIN = fingerprint(SERVER.public_bytes)
WEIGHTS = b"the final weights"
START = hashlib.sha256(b"the public checkpoint").hexdigest()


def config(**privacy: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "audited",
        "data": {"clients": 4},
        "train": {"rounds": 4, "local_steps": 3},
        "privacy": {
            "unit": "conversation",
            "noise": "local",
            "sampling_rate": 0.1,
            "noise_multiplier": 1.0,
            "epsilon_budget": 8.0,
        },
        "secagg": {"threshold": 3},
    }
    raw["privacy"].update(privacy)
    return config_from_dict(raw)


def model(n: int) -> str:
    return hashlib.sha256(b"model %d" % n).hexdigest()


def unchanged(_: str, body: dict[str, Any]) -> dict[str, Any]:
    return body


@dataclass
class Run:
    """Three rounds: released, aborted, released; round 4 is left open if `open_round`."""

    path: Path
    config: Config = field(default_factory=config)
    server: SigningKey = SERVER
    devices: list[SigningKey] = field(default_factory=lambda: list(DEVICES))
    cosigners: list[SigningKey] | None = None  # None: three of the devices
    open_round: bool = True
    version: str = fedattn.__version__
    body: Callable[[str, dict[str, Any]], dict[str, Any]] = unchanged  # forges a body
    report: Callable[[Report], Report] = lambda report: report  # forges the report

    def write(self, *, close: bool = True, report: bool = True) -> Path:
        self.path.mkdir(parents=True)
        (self.path / "model.safetensors").write_bytes(WEIGHTS)
        with Ledger.create(self.path / "ledger.jsonl", self.server) as ledger:
            self.ledger = ledger
            self._open()
            current = 0
            for number in range(1, 4 + self.open_round):
                intent, instruction = self._intent(number, model(current))
                if number == 2:
                    self._abort(number, intent.hash)
                elif number < 4:
                    self._release(number, intent.hash, instruction, model(current))
                    current += 1
            if close:
                end = {"outcome": "completed", "released": 2, "aborted": 1}
                self._append("close", {**end, "model_sha256": model(current)})
            if close and report:
                write_report(self.path, self.report(self._report()), self.server)
        return self.path

    def _append(self, kind: str, body: dict[str, Any]) -> Any:
        return self.ledger.append(kind, self.body(kind, body))

    def _open(self) -> None:
        self._append(
            "open",
            {
                "fedattn_version": self.version,
                "config": self.config.model_dump(mode="json"),
                "config_sha256": self.config.sha256(),
                "data_set": "made up",
                "server_public_key": self.server.public_bytes.hex(),
                "roster": [key.public_bytes.hex() for key in self.devices],
                "start_sha256": START,
                "model_sha256": model(0),
                "dimension": 10,
                "engine": "embedded",
                "created_by": "simulate",
            },
        )

    def _intent(self, number: int, before: str) -> Any:
        instruction = Instruction(
            config=self.config,
            round=number,
            start_sha256=START,
            model_sha256=before,
            dimension=10,
            ledger_head=self.ledger.head,
            roster=tuple(key.public_bytes for key in self.devices),
            event=round_event(self.config),
        )
        body = {
            "round": number,
            "instruction_sha256": instruction.sha256.hex(),
            "event": event_to_dict(round_event(self.config)),
            "threshold": 3,
            "cohort": 4,
            "model_before": before,
        }
        return self._append("intent", body), instruction.sha256

    def _abort(self, number: int, intent: str) -> None:
        abort = {"round": number, "intent": intent, "stage": "upload", "reason": "threshold"}
        self._append("abort", abort)

    def _release(self, number: int, intent: str, instruction: bytes, before: str) -> None:
        listed = survivors_sha256([1, 2, 3])
        signers = self.devices[:3] if self.cosigners is None else self.cosigners
        self._append(
            "release",
            {
                "round": number,
                "intent": intent,
                "survivors": 3,
                "survivors_sha256": listed.hex(),
                "survivor_commitments": [
                    hashlib.sha256(b"salt %d %d" % (number, i)).hexdigest() for i in range(3)
                ],
                "cosignatures": [
                    sign_confirmation(key, instruction, listed, bytes.fromhex(intent)).hex()
                    for key in signers
                ],
                "model_before": before,
                "model_after": model(1 if number == 1 else 2),
            },
        )

    def _report(self) -> Report:
        return build_report(
            self.ledger.entries,
            quality={
                "bpb_before": 2.31,
                "bpb_after": 2.19,
                "examples": 200,
                "bytes": 9000,
                "validation": [{"round": 1, "bpb": 2.27}, {"round": 3, "bpb": 2.2}],
            },
            model_file="model.safetensors",
            model_file_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
            samples=[{"context": ["hi <b>there</b>"], "reply": "<script>alert(1)</script>"}],
        )
