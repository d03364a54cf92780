"""One round over a Flower Grid: the five stages of secure aggregation, replies as they come."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedattn.counters import CounterMemory
from fedattn.entries import AbortReason
from fedattn.errors import ProtocolError, SecAggError, ThresholdError
from fedattn.flower import wire
from fedattn.flower.exchange import replies
from fedattn.flower.observer import Observer
from fedattn.flower.witnesses import Witnesses
from fedattn.instruction import Instruction
from fedattn.ledger import LedgerEntry
from fedattn.secagg.server import ServerRound
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
        """All five stages; RoundAbortedError if too few clients remain or secrets do not fit.

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
        server, name = ServerRound(instruction.spec), instruction.sha256
        witnesses, key = Witnesses(self.memory, name), instruction.roster
        everyone = range(1, len(self.nodes) + 1)
        document = instruction.document

        def advertised(index: int, reply: Message) -> None:
            counter = witnesses.check(key[index - 1], wire.take(reply, "counter"))
            server.advertised(index, wire.take(reply, "message"))
            witnesses.add(counter)

        self._exchange(
            "advertise",
            instruction,
            everyone,
            lambda i: wire.pack(instruction=document, remembered=witnesses.remembered(key[i - 1])),
            advertised,
        )
        witnesses.remember()

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

        model = wire.pack_model(vector)
        self._exchange(
            "upload",
            instruction,
            server.sharers,
            lambda i: wire.pack(
                instruction=name,
                message=server.mailbox(i),
                witnesses=witnesses.signatures_for(key[i - 1]),
                model=model,
            ),
            lambda i, reply: server.uploaded(i, wire.take(reply, "message")),
        )

        listed = server.survivors()
        confirm = wire.pack(instruction=name, message=listed, intent=intent.line)
        statement = bytes.fromhex(intent.hash)
        self._exchange(
            "confirm",
            instruction,
            server.survivor_indices,
            lambda _: confirm,
            lambda i, reply: server.confirmed(i, wire.take(reply, "message"), statement),
        )

        self._exchange(
            "unmask",
            instruction,
            tuple(server.confirmation_signatures),
            lambda i: wire.pack(instruction=name, message=server.confirmations(i)),
            lambda i, reply: server.revealed(i, wire.take(reply, "message")),
        )
        return RoundResult(
            survivors=server.survivor_indices,
            survivors_sha256=server.survivors_hash,
            cosignatures=tuple(server.confirmation_signatures.values()),
            total=server.total(),
        )

    def _exchange(
        self,
        stage: str,
        instruction: Instruction,
        members: Iterable[int],
        content: Callable[[int], RecordDict],
        accept: Callable[[int, Message], None],
    ) -> None:
        """Send to `members` and hand every usable reply to `accept`, until all came or time is up.

        A member that is unavailable, declines, or fails a check is left out and the round goes on.
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
        for place, reply in replies(self.grid, messages, self.timeout_s):
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
