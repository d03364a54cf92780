"""Uploads summed where they arise: the sum and the refusals of a grid that adds nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedattn.counters import CounterMemory
from fedattn.entries import Intent
from fedattn.flower import wire
from fedattn.flower.client_app import app
from fedattn.flower.grid import EmbeddedGrid
from fedattn.flower.observer import SilentObserver
from fedattn.flower.rounds import RoundAbortedError, RoundResult, RoundRunner
from fedattn.flower.summing import SummingGrid
from fedattn.flower.uploads import SummedUploads
from fedattn.ledger import LedgerEntry
from fedattn.privacy.events import event_to_dict
from fedattn.secagg import messages
from tests.attacks.fleet import Fleet

LIAR = 102  # a node
Lie = Callable[[Message, dict[int, bytes]], dict[str, Any]]


class Notes(SilentObserver):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Adding(EmbeddedGrid):
    """Counts how often its sum was taken."""

    taken = 0

    def take_sum(self) -> Any:
        self.taken += 1
        return super().take_sum()


class Plain(EmbeddedGrid):
    """A grid that cannot sum, as Ray's and a SuperLink's."""

    push_summed = None  # type: ignore[assignment]
    take_sum = None  # type: ignore[assignment]


def lying(lie: Lie | None) -> Callable[..., Message]:
    """The real ClientApp, and beside it a device that sends another upload than its own."""
    sent: dict[int, bytes] = {}

    def answer(message: Message, context: Any) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != wire.UPLOAD or lie is None:
            return reply
        sent[context.node_id] = wire.field(reply, "message")
        if context.node_id != LIAR:
            return reply
        content = RecordDict({"fedattn": ConfigRecord(lie(reply, sent))})
        return Message(content, reply_to=message)

    return answer


def intent_of(instruction: Any) -> LedgerEntry:
    body = Intent(
        round=instruction.round,
        instruction_sha256=instruction.sha256.hex(),
        event=event_to_dict(instruction.event),
        threshold=instruction.threshold,
        cohort=len(instruction.roster),
        roster=[key.hex() for key in instruction.roster],
        model_before=instruction.model_sha256,
    )
    entry = {"kind": "intent", "prev": instruction.ledger_head, "body": body.model_dump()}
    line = json.dumps(entry).encode()
    return LedgerEntry(1, "intent", instruction.ledger_head, "", body, b"", line)


def run(
    grid_type: type[EmbeddedGrid], folder: Any, lie: Lie | None = None, **changes: Any
) -> tuple[RoundResult, list[str], EmbeddedGrid]:
    """One round of four seeded devices; node 102 tells `lie` in place of its upload."""
    folder.mkdir()
    fleet, watching = Fleet(folder, seed=5, **changes), Notes()
    grid = grid_type(lying(lie), fleet.nodes)  # type: ignore[arg-type]
    instruction = fleet.instruction()
    memory = CounterMemory(folder / "counters.json")
    runner = RoundRunner(grid, sorted(fleet.nodes), watching, 60.0, memory)
    result = runner.run(instruction, fleet.vector, intent_of(instruction))
    return result, watching.notes, grid


KINDS = {
    "masked": {},
    "masked in 16 bits": {"secagg": {"modulus_bits": 16, "grid_scale": 1000.0}},
    "arithmetic": {"secure_aggregation": "arithmetic"},
    "noise shares": {
        "secure_aggregation": "arithmetic",
        "privacy": {"unit": "client", "noise": "distributed", "epsilon_budget": {"outsider": 200}},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_give_one_sum_bit_for_bit(tmp_path, kind):
    summed, notes, grid = run(Adding, tmp_path / "a", **KINDS[kind])
    plain, others, other = run(Plain, tmp_path / "b", **KINDS[kind])
    assert isinstance(grid, SummingGrid)
    assert grid.taken == 1
    assert not isinstance(other, SummingGrid)
    assert (summed.total == plain.total).all()
    assert summed.total.any()
    assert summed.survivors == plain.survivors == (1, 2, 3, 4)
    assert notes == others == []


def _own(reply: Message, **more: Any) -> dict[str, Any]:
    return {"message": wire.field(reply, "message"), **more}


def _forged(reply: Message, _: dict[int, bytes]) -> dict[str, Any]:
    message = wire.field(reply, "message")
    return {"message": message[:-1] + bytes([message[-1] ^ 1])}


LIES: dict[str, tuple[Lie, str]] = {
    "a forged signature": (_forged, "failed the check message.signature"),
    "another member's upload": (
        lambda _, sent: {"message": sent[101]},
        "failed the check message.index",
    ),
    "words cut off": (
        lambda reply, _: {"message": wire.field(reply, "message")[:-100]},
        "failed the check message.signature",
    ),
    "nothing": (lambda *_: {"other": 1}, "failed the check wire"),
    "a refusal beside its upload": (
        lambda reply, _: _own(reply, refusal="budget"),
        "declined by rule budget",
    ),
    "what looks extracted": (
        lambda *_: {"summed": bytes(16) + (2).to_bytes(4, "big")},
        "failed the check wire",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_both_ways_refuse_a_liar_by_one_name_and_sum_the_others(tmp_path, name):
    lie, said = LIES[name]
    clear = KINDS["arithmetic"]
    summed, notes, _ = run(Adding, tmp_path / "a", lie, **clear)
    plain, others, _ = run(Plain, tmp_path / "b", lie, **clear)
    assert summed.survivors == plain.survivors == (1, 3, 4)
    assert notes == others == [f"round 1: client 2 left at upload: {said}"]
    assert (summed.total == plain.total).all()


def test_a_liar_that_also_looks_extracted_is_summed_by_its_upload_alone(tmp_path):
    more = {"summed": bytes(16) + (3).to_bytes(4, "big")}
    summed, notes, _ = run(
        Adding, tmp_path / "a", lambda reply, _: _own(reply, **more), **KINDS["arithmetic"]
    )
    honest, _, _ = run(Plain, tmp_path / "b", **KINDS["arithmetic"])
    assert (summed.total == honest.total).all()
    assert notes == []


def test_words_that_were_summed_and_are_then_refused_abort_the_round(tmp_path, monkeypatch):
    """No check is left for then; if one fails all the same, no wrong sum is released."""
    rest = SummedUploads.rest

    def confused(self: SummedUploads, index: int, reply: Message) -> messages.Notice | None:
        return rest(self, index + (index == 3), reply)

    monkeypatch.setattr(SummedUploads, "rest", confused)
    with pytest.raises(RoundAbortedError, match=r"client 3.*message\.index") as caught:
        run(Adding, tmp_path / "a", **KINDS["arithmetic"])
    assert (caught.value.stage, caught.value.reason) == ("upload", "protocol")


def test_a_sum_that_is_not_of_those_who_were_summed_is_not_released(tmp_path):
    class Forgetful(Adding):
        def take_sum(self) -> Any:
            return super().take_sum()[:-1]

    with pytest.raises(RoundAbortedError, match="sum"):
        run(Forgetful, tmp_path / "a", **KINDS["arithmetic"])


def test_what_is_left_of_an_extracted_reply_is_small(tmp_path):
    sizes: list[int] = []

    class Watched(Adding):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                if reply.metadata.message_type == wire.UPLOAD:
                    record = reply.content.config_records["fedattn"]
                    assert set(record) == {"summed"}
                    sizes.append(len(record["summed"]))
                yield reply

    result, _, _ = run(Watched, tmp_path / "a", **KINDS["masked"])
    assert sizes == [20] * 4
    assert result.total.dtype == np.uint32
