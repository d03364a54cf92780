"""A whole training on the server: who takes part, round after round, and how it ends.

The order is the guarantee: a round's intent is on disk before anyone is contacted, and its cost is
composed on top of what is spent before the intent is written; a released model is on disk before
the ledger names it. So a run that is killed anywhere goes on from its last release (`resume`),
and what it had promised to spend stays spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flwr.serverapp import Grid

from fedattn.config import Config
from fedattn.counters import CounterMemory
from fedattn.entries import Abort, AbortReason, Close, Outcome
from fedattn.errors import LedgerError, UpdateError
from fedattn.flower import record
from fedattn.flower.cohorts import Cohorts
from fedattn.flower.enrolment import Member, enrol, introduce
from fedattn.flower.held_model import HeldModel
from fedattn.flower.observer import Observer, summarize
from fedattn.flower.record import Terms
from fedattn.flower.results import Results
from fedattn.flower.resuming import (
    enrol_again,
    record_resume,
    require_standing,
    scratch,
)
from fedattn.flower.rounds import RoundAbortedError, RoundResult, RoundRunner
from fedattn.instruction import Instruction
from fedattn.ledger import Ledger, LedgerEntry
from fedattn.plan.promises import check_promises
from fedattn.privacy.events import Event, round_event
from fedattn.privacy.rows import passed_budgets
from fedattn.randomness import Randomness
from fedattn.report import LEDGER_FILE, REPORT_FILE
from fedattn.resumption import Standing, require_resumable
from fedattn.signing import SigningKey
from fedattn.update import Floats

COUNTERS_FILE = "counters.json"


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
        terms: Terms,
    ) -> None:
        terms.require_fit(config)
        self.authority, self.terms = authority, terms
        self.grid, self.config, self.run_dir, self.observer = grid, config, run_dir, observer
        self.key = key
        self.memory = CounterMemory(terms.counters or run_dir / COUNTERS_FILE)
        self.held = HeldModel(config, run_dir)
        check_promises(config, self.held.dimension)
        self.event = round_event(config, self.held.dimension)
        self.events: list[Event] = []
        self.randomness = (
            Randomness.from_os()
            if config.seed is None
            else Randomness.seeded(config.seed, "server")
        )

    @property
    def standing(self) -> Standing:
        """What happened so far, as the ledger says."""
        return Standing.of(self.ledger.entries)

    def run(self) -> None:
        """Train until done, out of budget or asked to stop; then report. Or go on where it stood.

        An exception leaves the ledger whole: the run can be resumed.
        """
        path = self.run_dir / LEDGER_FILE
        if self.terms.is_resumed:
            require_resumable(path, path.with_name(REPORT_FILE))
            with Ledger.open(path, self.key, is_cut=True) as self.ledger:
                self._resume()
            return
        if path.exists():
            raise LedgerError(f"{path}: exists; a ledger is never overwritten")
        self.held.reserve()  # a full disk or a read-only directory: nobody is contacted
        self.results = Results(self.config, self.held.model)
        members = self._enrol(self.run_dir)
        self.roster = tuple(member.key for member in members)
        with Ledger.create(path, self.key) as self.ledger:
            self._open()
            self._finish(members)

    def _resume(self) -> None:
        """Take up the run of an opened ledger; after its `close` only the report is left."""
        standing = require_standing(
            self.ledger,
            self.config,
            self.event,
            start_sha256=self.held.start_sha256,
            authority_held_by=self.terms.authority_held_by,
        )
        self.results = Results(self.config, self.held.model)  # of the start; then the last release
        self.results.resume(standing, self.held.resume(standing))
        if standing.closed is not None:
            self._report()
            return
        self.events = list(standing.events)
        self.held.reserve()
        members = []
        if standing.last_round < self.config.train.rounds:
            members = enrol_again(
                self.grid, self.config, standing, lambda: self._enrol(scratch(self.run_dir))
            )
        record_resume(self.ledger, standing, members, self.observer)
        self.held.forget_others()
        self._finish(members, standing)

    def _finish(self, members: list[Member], standing: Standing | None = None) -> None:
        """Run the rounds that are left with `members`, close the ledger, report."""
        if members:
            self.cohorts = Cohorts(self.config, members, self.randomness.child("cohorts"))
            if standing is not None:
                rosters = [[bytes.fromhex(key) for key in each] for each in standing.rosters]
                self.cohorts.resume(standing.last_round, rosters)
            if not self.cohorts.is_sampled:
                self._introduce(members)
        if not self.results.is_measured:
            self.observer.note("no held-out conversation: quality is not measured")
        self.observer.started(self.config.train.rounds, len(members), self.results.before.bpb)
        interruption: KeyboardInterrupt | None = None
        outcome: Outcome
        try:
            outcome = self._train()
        except KeyboardInterrupt as error:
            outcome, interruption = "interrupted", error
        if interruption is not None:
            with suppress(LedgerError):  # interrupted in an append: whole, and to be resumed
                self._close(outcome)
            raise interruption  # asked twice to stop: the ledger is whole, the rest is not done
        self._close(outcome)
        self._report()

    def _train(self) -> Outcome:
        first = self.standing.last_round + 1
        for number in range(first, self.config.train.rounds + 1):
            if self.observer.stop_requested():
                return "interrupted"
            passed = passed_budgets(self.config, self.held.dimension, [*self.events, self.event])
            if passed:
                row, budget = passed[0], self.config.privacy.budgets[passed[0]]
                self.observer.note(
                    f"round {number} would pass epsilon {budget:g} against {row}: stopped before"
                )
                return "budget"
            if self.cohorts.is_exhausted:
                self.observer.note(
                    f"round {number}: no device may take part any more: stopped before"
                )
                return "budget"
            cohort = self.cohorts.draw()
            if not self.cohorts.is_enough(cohort):
                self._skip(number)
                continue
            self.held.reserve()  # before the intent: a full disk costs no round
            self.cohorts.contacted(cohort)
            result = self._round(cohort, number)
            bpb = None if result is None else self.results.measure(number)
            survivors = None if result is None else len(result.survivors)
            self.observer.round_ended(
                summarize(
                    self.config,
                    self.held.dimension,
                    self.events,
                    number,
                    cohort=len(cohort),
                    survivors=survivors,
                    validation_bpb=bpb,
                )
            )
        return "completed" if self.standing.released_rounds else "aborted"

    def _skip(self, number: int) -> None:
        """Log a round that its sample was too small for: nobody is contacted, nothing is spent."""
        self.ledger.append("skip", {"round": number, "reason": "cohort"})
        self.observer.note(f"round {number} skipped: too few clients were drawn")

    def _round(self, cohort: Sequence[Member], number: int) -> RoundResult | None:
        """One round: its intent, then its release or its abort."""
        instruction = Instruction(
            config=self.config,
            round=number,
            start_sha256=self.held.start_sha256,
            model_sha256=self.held.sha256,
            dimension=self.held.dimension,
            run=self.ledger.entries[0].hash,
            ledger_head=self.ledger.head,
            roster=tuple(member.key for member in cohort),
            event=self.event,
        )
        intent = self.ledger.append("intent", record.intent(instruction))
        self.events.append(self.event)  # spent from here on, whatever follows
        runner = RoundRunner(
            self.grid,
            [member.node for member in cohort],
            self.observer,
            self.config.secagg.stage_timeout_s,
            self.memory,
        )
        try:
            if self.cohorts.is_sampled:
                self._introduce(cohort)
            result = runner.run(instruction, self.held.vector, intent)
            mean = instruction.codec.decode_mean(
                result.total, len(result.survivors), self.randomness.child("noise", str(number))
            )
        except RoundAbortedError as error:
            self._abort(number, intent, error.stage, error.reason, str(error))
            return None
        except UpdateError as error:
            self._abort(number, intent, "decode", "decode", str(error))
            return None
        except KeyboardInterrupt:
            with suppress(LedgerError):
                self._abort(number, intent, runner.current_stage, "interrupted", "interrupted")
            raise
        except Exception as error:
            with suppress(LedgerError):  # an intent without an outcome is spent all the same
                self._abort(number, intent, runner.current_stage, "error", type(error).__name__)
            raise
        self._release(instruction, intent, result, mean)
        return result

    def _release(
        self, instruction: Instruction, intent: LedgerEntry, result: RoundResult, mean: Floats
    ) -> None:
        """Bring the new model to disk, then name it in the ledger, then forget the one before."""
        name, vector = self.held.next(mean, instruction.round, self.results.validation)
        salts = self.randomness.child("commitments", str(instruction.round))
        self.ledger.append("release", record.release(instruction, intent, result, name, salts))
        self.held.take(vector)

    def _abort(
        self, number: int, intent: LedgerEntry, stage: str, reason: AbortReason, detail: str
    ) -> None:
        aborted = Abort(round=number, intent=intent.hash, stage=stage, reason=reason)
        self.ledger.append("abort", aborted)
        self.observer.note(f"round {number} aborted at {stage}: {detail}")

    def _open(self) -> None:
        opened = record.opening(
            self.config,
            self.terms,
            server_public_key=self.key.public_bytes,
            roster=self.roster,
            start_sha256=self.held.start_sha256,
            model_sha256=self.held.sha256,
            dimension=self.held.dimension,
            engine=type(self.grid).__name__,
        )
        self.ledger.append("open", opened)

    def _close(self, outcome: Outcome) -> None:
        standing = self.standing
        closed = Close(
            outcome=outcome,
            released=len(standing.released_rounds),
            aborted=standing.aborted,
            skipped=standing.skipped,
            model_sha256=standing.model,  # (held may be one behind: Ctrl-C after a release)
        )
        self.ledger.append("close", closed)

    def _report(self) -> None:
        """Write model and report; with the report on disk there is nothing to resume."""
        self.results.write(self.run_dir, self.ledger.entries, self.key)
        self.held.forget()

    def _enrol(self, folder: Path) -> list[Member]:
        return enrol(
            self.grid,
            self.config,
            self.authority,
            folder,
            nodes=self.terms.nodes,
            revoked=self.terms.revoked,
            observer=self.observer,
        )

    def _introduce(self, members: Sequence[Member]) -> None:
        introduce(self.grid, self.config, members, self.terms.revoked)
