"""Small finished runs with real keys, hashes and co-signatures; parts can be forged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import save

import fedattn
from fedattn.audit import AuditResult
from fedattn.config import Architecture, Config, config_from_dict
from fedattn.entries import Release
from fedattn.instruction import Instruction
from fedattn.ledger import Ledger
from fedattn.mechanism import threshold_of
from fedattn.privacy.events import Event, event_to_dict, round_event
from fedattn.randomness import Randomness
from fedattn.report import PURPOSE as REPORT_PURPOSE
from fedattn.report import Report, build_report, canonical_signature, render_html, write_report
from fedattn.secagg import survivors_sha256
from fedattn.secagg.confirmation import sign_confirmation
from fedattn.signing import SigningKey, fingerprint

SERVER = SigningKey.generate(Randomness.seeded(1, "server"))
STRANGER = SigningKey.generate(Randomness.seeded(2, "stranger"))
CROWD = [SigningKey.generate(Randomness.seeded(3, str(i))) for i in range(8)]
DEVICES = CROWD[:4]
PRETENDS = {"cohort": 500, "population": 10_000}
PIN = fingerprint(SERVER.public_bytes)


def weights_file(shape: Architecture) -> bytes:
    """A model file without a weight, which states `shape`."""
    return save({}, metadata={"format": "fedattn-model/1", "architecture": shape.model_dump_json()})


WEIGHTS = weights_file(Architecture())
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


def summed(**privacy: Any) -> Config:
    """A round is one DP-SGD step; four devices share the noise, one of them may collude."""
    chosen = {"noise": "distributed", "sampling_rate": 0.05, "noise_multiplier": 2.0}
    return _summed(4, 3, {**chosen, **privacy})


def sampled(**privacy: Any) -> Config:
    """Of eight clients the server draws each with probability one half."""
    chosen = {"unit": "client", "noise": "distributed", "client_rate": 0.5}
    budgets = {"outsider": 20.0, "server": 20.0}
    return _summed(8, 3, {**chosen, "noise_multiplier": 3.0, "epsilon_budget": budgets, **privacy})


def _summed(clients: int, threshold: int, privacy: dict[str, Any]) -> Config:
    raw = config().model_dump(mode="json")
    raw["data"]["clients"] = clients
    raw["train"]["local_steps"] = 1
    raw["privacy"].update(privacy)
    raw["secagg"] = {"threshold": threshold, "max_colluding": 1, "dropout_share": 0.2}
    return config_from_dict(raw)


def model(n: int) -> str:
    return hashlib.sha256(b"model %d" % n).hexdigest()


def unchanged(_: str, body: dict[str, Any]) -> dict[str, Any]:
    return body


@dataclass
class Run:
    """Three rounds: released, aborted, released; in round 4 it is killed if `open_round`.

    A round's clients are `cohort(number)` of the devices; without one it is skipped.
    """

    path: Path
    config: Config = field(default_factory=config)
    server: SigningKey = SERVER
    devices: list[SigningKey] = field(default_factory=lambda: list(DEVICES))
    cosigners: list[SigningKey] | None = None  # None: as many of the round's as it needs
    cohort: Callable[[list[SigningKey], int], list[SigningKey]] = lambda devices, number: devices
    event: Event | None = None  # what instruction and intent state; None: what the config demands
    more_rounds: int = 0  # after these, killed in each
    hidden_intent: int = 0  # a round whose intent is not written
    open_round: bool = True
    held_by: str = "simulation"
    version: str = fedattn.__version__
    body: Callable[[str, dict[str, Any]], dict[str, Any]] = unchanged  # forges a body
    report: Callable[[Report], Report] = lambda report: report  # forges the report

    def write(self, *, close: bool = True, report: bool = True) -> Path:
        self.path.mkdir(parents=True)
        (self.path / "model.safetensors").write_bytes(WEIGHTS)
        with Ledger.create(self.path / "ledger.jsonl", self.server) as ledger:
            self.ledger = ledger
            self._open()
            current = skipped = 0
            for number in range(1, 4 + self.open_round + self.more_rounds):
                members = self.cohort(list(self.devices), number)
                if not members:
                    self._append("skip", {"round": number, "reason": "cohort"})
                    skipped += 1
                    continue
                intent, instruction = self._intent(number, model(current), members)
                if number == 2:
                    self._abort(number, intent)
                elif number < 4:
                    self._release(number, intent, instruction, members, current)
                    current += 1
                else:
                    self._resume(intent, model(current))
            if close:
                end = {"outcome": "completed", "released": current, "aborted": 1}
                end |= {"skipped": skipped, "model_sha256": model(current)}
                self._append("close", end)
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
                "authority_held_by": self.held_by,
                "secure_aggregation": self.config.secure_aggregation,
            },
        )

    def _intent(self, number: int, before: str, members: list[SigningKey]) -> tuple[str, bytes]:
        event = self.event or round_event(self.config, 10)
        instruction = Instruction(
            config=self.config,
            run=self.ledger.entries[0].hash,
            round=number,
            start_sha256=START,
            model_sha256=before,
            dimension=10,
            ledger_head=self.ledger.head,
            roster=tuple(key.public_bytes for key in members),
            event=event,
        )
        body = {
            "round": number,
            "instruction_sha256": instruction.sha256.hex(),
            "event": event_to_dict(event),
            "threshold": threshold_of(self.config, len(members)),
            "cohort": len(members),
            "roster": [key.public_bytes.hex() for key in members],
            "model_before": before,
        }
        if number == self.hidden_intent:
            return "f" * 64, instruction.sha256
        return self._append("intent", body).hash, instruction.sha256

    def _abort(self, number: int, intent: str) -> None:
        abort = {"round": number, "intent": intent, "stage": "upload", "reason": "threshold"}
        self._append("abort", abort)

    def _resume(self, intent: str, current: str) -> None:
        """The run was killed in the round of `intent` and went on."""
        roster = [key.public_bytes.hex() for key in self.devices]
        found = {"open_intent": intent, "model": current, "roster": roster}
        self._append("resume", {**found, "torn": None, "torn_bytes": 0})

    def _release(
        self,
        number: int,
        intent: str,
        instruction: bytes,
        members: list[SigningKey],
        current: int,
    ) -> None:
        count = threshold_of(self.config, len(members))
        listed = survivors_sha256(list(range(1, count + 1)))
        signers = members[:count] if self.cosigners is None else self.cosigners
        self._append(
            "release",
            {
                "round": number,
                "intent": intent,
                "survivors": count,
                "survivors_sha256": listed.hex(),
                "survivor_commitments": [
                    hashlib.sha256(b"salt %d %d" % (number, i)).hexdigest() for i in range(count)
                ],
                "cosignatures": [
                    sign_confirmation(key, instruction, listed, bytes.fromhex(intent)).hex()
                    for key in signers
                ],
                "model_before": model(current),
                "model_after": model(current + 1),
            },
        )

    def _report(self) -> Report:
        bodies = [entry.body for entry in self.ledger.entries]
        released = [body.round for body in bodies if isinstance(body, Release)]
        return build_report(
            self.ledger.entries,
            quality={
                "bpb_before": 2.31,
                "bpb_after": 2.19,
                "examples": 200,
                "bytes": 9000,
                "validation": [
                    {"round": number, "bpb": bpb}
                    for number, bpb in zip(released, (2.27, 2.2), strict=False)
                ],
            },
            model_file="model.safetensors",
            model_file_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
            samples=[{"context": ["hi <b>there</b>"], "reply": "<script>alert(1)</script>"}],
        )


def failed(result: AuditResult) -> set[str]:
    return {finding.check for finding in result.findings if not finding.ok}


def resign_report(run: Path, key: SigningKey, change: Callable[[dict[str, Any]], None]) -> None:
    """Change report.json and sign it anew, page included."""
    raw = json.loads((run / "report.json").read_bytes())
    change(raw)
    report = Report.model_validate(raw)
    stored = report.to_bytes()
    (run / "report.json").write_bytes(stored)
    public, signature = key.public_bytes.hex(), key.sign(REPORT_PURPOSE, stored).hex()
    signed = canonical_signature({"public_key": public, "signature": signature})
    (run / "report.sig").write_bytes(signed)
    (run / "report.html").write_text(render_html(report))
