"""The ServerApp: enrols devices, keeps the ledger, runs rounds, measures, reports.

`run_config` names the run: `config-json` (canonical config), `run-dir`, `server-key` and
`authority` (the CA's certificate). The order is the
guarantee: a round's intent is on disk before anyone is contacted, and its cost is composed on
top of what is spent before the intent is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedattn import __version__
from fedattn.batches import Pair, tokenize
from fedattn.checkpoint import (
    model_sha256,
    read_vector,
    released_sha256,
    save_model,
    start_model,
    write_vector,
)
from fedattn.config import Config, config_from_json
from fedattn.data import Dialogue, describe
from fedattn.device import load_partition
from fedattn.entries import AbortReason, Outcome
from fedattn.errors import UpdateError
from fedattn.flower.enrolment import enrol
from fedattn.flower.observer import Observer, RoundSummary, SilentObserver
from fedattn.flower.rounds import RoundAbortedError, RoundResult, RoundRunner
from fedattn.generate import OPENERS, Quality, bits_per_byte, choose_pairs, reply_to
from fedattn.instruction import Instruction
from fedattn.ledger import Ledger, LedgerEntry
from fedattn.model import trainable_names
from fedattn.privacy.accountants import spend, would_pass
from fedattn.privacy.events import Event, event_to_dict, round_event
from fedattn.randomness import Randomness
from fedattn.report import build_report, write_report
from fedattn.signing import SigningKey
from fedattn.tokens import Tokenizer

app = ServerApp()
MODEL_FILE = "model.safetensors"
LEDGER_FILE = "ledger.jsonl"
KEY_FILE = "server.pem"


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a whole training; the results are in the run directory."""
    config = config_from_json(str(context.run_config["config-json"]))
    observer: Observer = getattr(grid, "observer", SilentObserver())
    key = SigningKey.load(Path(str(context.run_config["server-key"])))
    authority = Path(str(context.run_config["authority"])).read_bytes()
    run_dir = Path(str(context.run_config["run-dir"]))
    Training(grid, config, run_dir, key, authority, observer).run()


class Training:
    """One run: what the server knows and decides between rounds."""

    def __init__(
        self,
        grid: Grid,
        config: Config,
        run_dir: Path,
        key: SigningKey,
        authority: bytes,
        observer: Observer,
    ) -> None:
        self.authority = authority
        self.grid, self.config, self.run_dir, self.observer = grid, config, run_dir, observer
        self.key = key
        self.model = start_model(config.model, seed=config.seed)  # its own, not the devices'
        self.start = model_sha256(self.model)
        self.names = trainable_names(self.model, config.model.trainable)
        self.vector = read_vector(self.model, self.names)
        self.tokenizer = Tokenizer(self.model.shape.vocab_size)
        self.event = round_event(config)
        self.events: list[Event] = []
        self.released, self.aborted = 0, 0
        self.validation: list[dict[str, float]] = []
        self.randomness = (
            Randomness.from_os()
            if config.seed is None
            else Randomness.seeded(config.seed, "server")
        )

    @property
    def model_sha256(self) -> str:
        """The name of the current model."""
        return released_sha256(self.start, self.vector)

    def run(self) -> None:
        """Enrol, train until done, out of budget or asked to stop; then report."""
        # Of the data the server uses the held-out conversations alone: those it may see. (In a
        # simulation one process reads the file for server and devices.)
        held_out = load_partition(self.config.data)
        test = self._pairs(held_out.test, self.config.eval.examples, "test")
        progress = self._pairs(
            held_out.validation, self.config.eval.progress_examples, "validation"
        )
        before = self._quality(test)
        if not test:
            self.observer.note("no held-out conversation: quality is not measured")
        self.replies_before = self._replies()
        nodes, self.roster = enrol(self.grid, self.config, self.authority, self.run_dir)
        with Ledger.create(self.run_dir / LEDGER_FILE, self.key) as self.ledger:
            self._open()
            self.observer.started(self.config.train.rounds, len(nodes), before.bpb)
            runner = RoundRunner(
                self.grid, nodes, self.observer, self.config.secagg.stage_timeout_s
            )
            interruption: KeyboardInterrupt | None = None
            outcome: Outcome
            try:
                outcome = self._train(runner, progress)
            except KeyboardInterrupt as error:
                outcome, interruption = "interrupted", error
            self._close(outcome)
            if interruption is not None:
                raise interruption  # asked twice to stop: the ledger is whole, the rest is not done
            self._report(before, self._quality(test))

    def _train(self, runner: RoundRunner, progress: Sequence[Pair]) -> Outcome:
        privacy = self.config.privacy
        for number in range(1, self.config.train.rounds + 1):
            if self.observer.stop_requested():
                return "interrupted"
            budget = privacy.epsilon_budget
            if budget is not None and would_pass(self.events, self.event, budget, privacy.delta):
                self.observer.note(f"round {number} would pass epsilon {budget:g}: stopped before")
                return "budget"
            result = self._round(runner, number)
            if result is not None and progress:
                bpb = self._quality(progress).bpb
                self.validation.append({"round": number, "bpb": bpb})
            self.observer.round_ended(
                RoundSummary(
                    round=number,
                    is_released=result is not None,
                    survivors=0 if result is None else len(result.survivors),
                    epsilon=spend(self.events, privacy.delta).epsilon,
                    validation_bpb=self.validation[-1]["bpb"] if result and progress else None,
                )
            )
        return "completed" if self.released else "aborted"

    def _round(self, runner: RoundRunner, number: int) -> RoundResult | None:
        """One round: its intent, then its release or its abort."""
        instruction = Instruction(
            config=self.config,
            round=number,
            start_sha256=self.start,
            model_sha256=self.model_sha256,
            dimension=len(self.vector),
            ledger_head=self.ledger.head,
            roster=self.roster,
            event=self.event,
        )
        intent = self.ledger.append(
            "intent",
            {
                "round": number,
                "instruction_sha256": instruction.sha256.hex(),
                "event": event_to_dict(self.event),
                "threshold": self.config.secagg.threshold,
                "cohort": len(self.roster),
                "model_before": self.model_sha256,
            },
        )
        self.events.append(self.event)  # spent from here on, whatever follows
        try:
            result = runner.run(instruction, self.vector, intent)
            mean = instruction.codec.decode_mean(result.total, len(result.survivors))
        except RoundAbortedError as error:
            self._abort(number, intent, error.stage, error.reason, str(error))
            return None
        except UpdateError as error:
            self._abort(number, intent, "decode", "decode", str(error))
            return None
        except KeyboardInterrupt:
            self._abort(number, intent, runner.current_stage, "interrupted", "interrupted")
            raise
        vector = (self.vector.double() + torch.from_numpy(mean)).float()
        self._release(number, intent, result, vector)
        return result

    def _release(
        self, number: int, intent: LedgerEntry, result: RoundResult, vector: torch.Tensor
    ) -> None:
        before, self.vector = self.model_sha256, vector
        self.ledger.append(
            "release",
            {
                "round": number,
                "intent": intent.hash,
                "survivors": len(result.survivors),
                "survivors_sha256": result.survivors_sha256.hex(),
                "survivor_commitments": self._commitments(result),
                "cosignatures": [signature.hex() for signature in result.cosignatures],
                "model_before": before,
                "model_after": self.model_sha256,
            },
        )
        write_vector(self.model, self.names, self.vector)
        self.released += 1

    def _abort(
        self, number: int, intent: LedgerEntry, stage: str, reason: AbortReason, detail: str
    ) -> None:
        self.ledger.append(
            "abort", {"round": number, "intent": intent.hash, "stage": stage, "reason": reason}
        )
        self.aborted += 1
        self.observer.note(f"round {number} aborted at {stage}: {detail}")

    def _commitments(self, result: RoundResult) -> list[str]:
        """Salted hashes of who survived: checkable by whoever is given a salt, else opaque."""
        keys = [self.roster[index - 1] for index in result.survivors]
        return sorted(sha256(self.randomness.bytes(32) + key).hexdigest() for key in keys)

    def _open(self) -> None:
        self.ledger.append(
            "open",
            {
                "fedattn_version": __version__,
                "config": self.config.model_dump(mode="json"),
                "config_sha256": self.config.sha256(),
                "data_set": describe(self.config.data),
                "server_public_key": self.key.public_bytes.hex(),
                "roster": [key.hex() for key in self.roster],
                "start_sha256": self.start,
                "model_sha256": self.model_sha256,
                "dimension": len(self.vector),
                "engine": type(self.grid).__name__,
                "created_by": "simulate",
            },
        )

    def _close(self, outcome: Outcome) -> None:
        self.ledger.append(
            "close",
            {
                "outcome": outcome,
                "released": self.released,
                "aborted": self.aborted,
                "model_sha256": self.model_sha256,
            },
        )

    def _report(self, before: Quality, after: Quality) -> None:
        """Write the model, then the signed report that names it."""
        path = self.run_dir / MODEL_FILE
        notes = {"start_sha256": self.start, "model_sha256": self.model_sha256}
        save_model(path, self.model, notes=notes)
        report = build_report(
            self.ledger.entries,
            quality={
                "bpb_before": _finite(before.bpb),
                "bpb_after": _finite(after.bpb),
                "examples": after.examples,
                "bytes": after.bytes,
                "validation": self.validation,
            },
            model_file=MODEL_FILE,
            model_file_sha256=sha256(path.read_bytes()).hexdigest(),
            samples=[
                {"context": [opener], "reply": now, "reply_before": then}
                for opener, now, then in zip(
                    self._openers, self._replies(), self.replies_before, strict=True
                )
            ],
        )
        write_report(self.run_dir, report, self.key)

    @property
    def _openers(self) -> tuple[str, ...]:
        return OPENERS[: self.config.eval.samples]

    def _replies(self) -> list[str]:
        """Greedy replies to openers of our own: no held-out person's words enter a report."""
        return [reply_to(self.model, self.tokenizer, [opener]).text for opener in self._openers]

    def _pairs(self, dialogues: Sequence[Dialogue], count: int, label: str) -> list[Pair]:
        records = tokenize(dialogues, self.tokenizer, self.config.data.max_reply_bytes)
        shape = self.model.shape
        return choose_pairs(records, self.tokenizer, shape.context_tokens, count, label)

    def _quality(self, pairs: Sequence[Pair]) -> Quality:
        self.model.eval()
        return bits_per_byte(self.model, pairs, self.tokenizer)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
