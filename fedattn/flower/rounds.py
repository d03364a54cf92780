"""One round over a Flower Grid: the stages of secure aggregation, replies as they come.

Five stages; three in a simulation that skips the masks. A grid that can adds uploads where they
arise, else they are added here: the same sum, the same refusals by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedattn.counters import CounterMemory
from fedattn.entries import AbortReason
from fedattn.errors import ProtocolError, SecAggError, ThresholdError
from fedattn.flower import wire
from fedattn.flower.exchange import replies
from fedattn.flower.observer import Observer
from fedattn.flower.summing import SummingGrid
from fedattn.flower.uploads import SummedUploads
from fedattn.flower.witnesses import Witnesses
from fedattn.instruction import Instruction
from fedattn.ledger import LedgerEntry
from fedattn.secagg.arithmetic import ArithmeticRound
from fedattn.secagg.server import ServerRound
from fedattn.secagg.survivors import SurvivorSum
from fedattn.update import Words

_RULE = re.compile(r"[a-z0-9_.]{1,64}")


class RoundAbortedError(SecAggError):
    """A round ended without a release; `stage` and `reason` are what its ledger entry says."""

    def __init__(self, stage: str, reason: AbortReason, detail: str) -> None:
        super().__init__(detail)
        self.stage, self.reason = stage, reason


@dataclass(frozen=True)
class RoundResult:
    """What a completed round gave: the sum over exactly the survivors, and their signatures."""

    survivors: tuple[int, ...]
    survivors_sha256: bytes
    cosignatures: tuple[bytes, ...]
    total: Words  # (d,) modulo 2^b


@dataclass
class RoundRunner:
    """Runs rounds over `grid`; member i of a roster is node `nodes[i - 1]`."""

    grid: Grid
    nodes: Sequence[int]
    observer: Observer
    timeout_s: float
    memory: CounterMemory
    current_stage: str = field(default="advertise", init=False)

    def run(self, instruction: Instruction, vector: Tensor, intent: LedgerEntry) -> RoundResult:
        """All stages; RoundAbortedError if too few clients remain or secrets do not fit.

        `vector` (d,) is the model that `instruction` names, `intent` its ledger entry.
        """
        self.current_stage = "advertise"
        try:
            return self._run(instruction, vector, intent)
        except ThresholdError as error:
            raise RoundAbortedError(self.current_stage, "threshold", str(error)) from None
        except ProtocolError as error:
            raise RoundAbortedError(self.current_stage, "protocol", str(error)) from None

    def _run(self, instruction: Instruction, vector: Tensor, intent: LedgerEntry) -> RoundResult:
        witnesses = Witnesses(self.memory, instruction.sha256)
        run = self._masked if instruction.is_masked else self._arithmetic
        return run(instruction, wire.pack_model(vector), intent, witnesses)

    def _masked(
        self,
        instruction: Instruction,
        model: ArrayRecord,
        intent: LedgerEntry,
        witnesses: Witnesses,
    ) -> RoundResult:
        server, name, key = ServerRound(instruction.spec), instruction.sha256, instruction.roster
        self._advertise(instruction, witnesses, server.advertised)

        def near(index: int) -> list[bytes]:
            return [key[other - 1] for other in server.neighbours(index)]

        def shared(index: int, reply: Message) -> None:
            signatures = wire.take(reply, "countersignatures")
            witnesses.countersigned(key[index - 1], near(index), signatures)
            server.shared(index, wire.take(reply, "message"))

        self._exchange(
            "share",
            instruction,
            server.advertisers,
            lambda i: wire.pack(
                instruction=name,
                message=server.key_list(i),
                counters=witnesses.shown_to(key[i - 1], near(i)),
            ),
            shared,
        )
        self._upload(
            instruction,
            server,
            server.sharers,
            lambda i: wire.pack(
                instruction=name,
                message=server.mailbox(i),
                witnesses=witnesses.signatures_for(key[i - 1]),
                model=model,
            ),
        )
        self._confirm(instruction, server, intent)
        self._exchange(
            "unmask",
            instruction,
            tuple(server.confirmation_signatures),
            lambda i: wire.pack(instruction=name, message=server.confirmations(i)),
            lambda i, reply: server.revealed(i, wire.take(reply, "message")),
        )
        return _result(server, server.total())

    def _arithmetic(
        self,
        instruction: Instruction,
        model: ArrayRecord,
        intent: LedgerEntry,
        witnesses: Witnesses,
    ) -> RoundResult:
        """Without masks: the server sees every upload in clear, and the report says so."""
        server = ArithmeticRound(instruction.spec)
        self._advertise(instruction, witnesses, lambda index, _: server.advertised(index))
        content = wire.pack(instruction=instruction.sha256, model=model)
        self._upload(instruction, server, server.advertisers, lambda _: content)
        self._confirm(instruction, server, intent)
        return _result(server, server.total())

    def _advertise(
        self,
        instruction: Instruction,
        witnesses: Witnesses,
        accept: Callable[[int, bytes], None],
    ) -> None:
        """Who takes part; `accept` is handed its message, empty where there is none to verify."""
        key, document = instruction.roster, instruction.document

        def advertised(index: int, reply: Message) -> None:
            counter = witnesses.check(key[index - 1], wire.take(reply, "counter"))
            accept(index, wire.take(reply, "message") if instruction.is_masked else b"")
            witnesses.add(counter)

        self._exchange(
            "advertise",
            instruction,
            range(1, len(self.nodes) + 1),
            lambda i: wire.pack(instruction=document, remembered=witnesses.remembered(key[i - 1])),
            advertised,
        )
        witnesses.remember()

    def _upload(
        self,
        instruction: Instruction,
        server: SurvivorSum,
        members: Iterable[int],
        content: Callable[[int], RecordDict],
    ) -> None:
        """The members' vectors into the server's sum: where they arise if the grid can, or here.

        The grid's sum must be of exactly the replies that it yields (`summing`).
        """
        members, grid, uploads = list(members), self.grid, server.uploads
        extract = SummedUploads(uploads, {self.nodes[index - 1]: index for index in members})

        def uploaded(index: int, reply: Message) -> None:
            if not extract.is_extracted(reply):
                server.uploaded(index, wire.take(reply, "message"))
                return
            try:
                server.summed(index, extract.rest(index, reply))
            except ProtocolError as error:  # its words are in the sum, and cannot be taken out
                detail = f"client {index}'s upload was summed and fails the check {error.check}"
                raise RoundAbortedError("upload", "protocol", detail) from None

        if not isinstance(grid, SummingGrid):
            self._exchange("upload", instruction, members, content, uploaded)
            return
        self._exchange("upload", instruction, members, content, uploaded, extract)
        server.add_uploads(grid.take_sum())

    def _confirm(self, instruction: Instruction, server: SurvivorSum, intent: LedgerEntry) -> None:
        listed = server.survivors()
        confirm = wire.pack(instruction=instruction.sha256, message=listed, intent=intent.line)
        statement = bytes.fromhex(intent.hash)
        self._exchange(
            "confirm",
            instruction,
            server.survivor_indices,
            lambda _: confirm,
            lambda i, reply: server.confirmed(i, wire.take(reply, "message"), statement),
        )

    def _exchange(
        self,
        stage: str,
        instruction: Instruction,
        members: Iterable[int],
        content: Callable[[int], RecordDict],
        accept: Callable[[int, Message], None],
        extract: SummedUploads | None = None,
    ) -> None:
        """Send to `members` and hand every usable reply to `accept`, until all came or time is up.

        A member that is unavailable, declines, or fails a check is left out and the round goes on.
        With `extract` the grid adds up the words of replies before they are handed over.
        """
        members, round_ = list(members), instruction.round
        if not members:
            content(0)  # closes the stage before, which raises ThresholdError: nobody was in it
        messages = [
            self.grid.create_message(
                content(index),
                wire.STAGES[stage],
                self.nodes[index - 1],
                str(round_),
                ttl=self.timeout_s,  # or a node that comes back would be asked too late
            )
            for index in members
        ]
        self.current_stage = stage  # from here on; what content raised belongs to the one before
        done, silent = 0, len(messages)
        self.observer.stage(round_, stage, 0, len(members))
        grid = self.grid if extract is None else cast(Grid, _Summed(self.grid, extract))
        for place, reply in replies(grid, messages, self.timeout_s):
            silent -= 1
            problem = self._take(members[place], reply, accept)
            if problem is None:
                done += 1
            else:
                left = f"client {members[place]} left at {stage}"
                self.observer.note(f"round {round_}: {left}: {problem}")
            self.observer.stage(round_, stage, done, len(members))
        if silent:
            self.observer.note(f"round {round_}: {silent} clients silent at {stage}")

    @staticmethod
    def _take(index: int, reply: Message, accept: Callable[[int, Message], None]) -> str | None:
        """None if the reply was accepted, else why it was not."""
        if reply.has_error():
            # The reason may hold whatever the other side put there: the code says enough.
            return f"no usable reply (Flower error code {reply.error.code})"
        declined = wire.refusal(reply)
        if declined is not None:
            # a lying device could send anything, terminal escapes too
            shown = declined if _RULE.fullmatch(declined) else "(no name of a rule)"
            return f"declined by rule {shown}"
        try:
            accept(index, reply)
        except ProtocolError as error:
            return f"failed the check {error.check}"
        return None


@dataclass(frozen=True)
class _Summed:
    """A SummingGrid as `replies` asks one: what it pushes is summed."""

    grid: Grid
    extract: SummedUploads

    @property
    def waits(self) -> bool:
        return bool(getattr(self.grid, "waits", False))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        assert isinstance(self.grid, SummingGrid)
        return self.grid.push_summed(messages, self.extract.uploads.spec.dimension, self.extract)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.grid.pull_messages(message_ids)


def _result(server: SurvivorSum, total: Words) -> RoundResult:
    return RoundResult(
        survivors=server.survivor_indices,
        survivors_sha256=server.survivors_hash,
        cosignatures=tuple(server.confirmation_signatures.values()),
        total=total,
    )
