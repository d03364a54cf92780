"""A lying device that speaks Flower: it is left out, and what it says is shown nowhere."""

from __future__ import annotations

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedattn.audit.ledger_checks import CERTIFICATES_FILE
from fedattn.counters import CounterMemory
from fedattn.flower import wire
from fedattn.flower.cohorts import Cohorts
from fedattn.flower.enrolment import Member, enrol
from fedattn.flower.observer import SilentObserver
from fedattn.flower.record import Terms
from fedattn.flower.results import Results
from fedattn.flower.rounds import RoundAbortedError, RoundRunner
from fedattn.flower.training import Training
from fedattn.ledger import Ledger
from fedattn.signing import SigningKey
from tests.attacks.adversary import RNG
from tests.attacks.fleet import Play

CANARY = "CANARY: hunter2"


class Notes(SilentObserver):
    """Keeps what an operator would read."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


class Interposed:
    """The grid, with the replies of device 1 at one stage replaced; uploads are added up after it.

    (Where a grid adds them before, a device that lies is in tests/flower/test_uploads.py.)
    """

    push_summed = None

    def __init__(self, grid, message_type, replace):
        self._grid, self._type, self._replace = grid, message_type, replace

    def __getattr__(self, name):
        return getattr(self._grid, name)

    def pull_messages(self, ids):
        for reply in self._grid.pull_messages(ids):
            meta = reply.metadata
            if meta.src_node_id == 101 and meta.message_type == self._type:
                changed = self._replace(reply)
                changed.metadata.__dict__.update(meta.__dict__)
                reply = changed
            yield reply


def run_round(fleet, stage, replace, tmp_path):
    grid, notes = Interposed(fleet.grid, wire.STAGES[stage], replace), Notes()
    with Ledger.create(tmp_path / "ledger.jsonl", SigningKey.generate(RNG)) as ledger:
        opening = Training(
            grid, fleet.config, tmp_path, ledger._key, b"", notes, Terms("simulation")
        )
        opening.ledger, opening.roster = ledger, fleet.roster
        opening.results = Results(fleet.config, opening.held.model)
        members = [
            Member(node, device.identity.public_bytes, device.certificate)
            for node, device in zip(fleet.nodes, fleet.devices, strict=True)
        ]
        opening.cohorts = Cohorts(fleet.config, members, opening.randomness.child("cohorts"))
        opening.held.reserve()
        opening._open()
        result = opening._round(opening.cohorts.draw(), 1)
    return result, notes.lines, (tmp_path / "ledger.jsonl").read_text()


def replying(content):
    def replace(reply):
        request = Message(RecordDict(), dst_node_id=101, message_type="query.x")
        request.metadata.__dict__["_message_id"] = "x"
        if isinstance(content, Error):
            return Message(content, reply_to=request)
        return Message(content, reply_to=request)

    return replace


@pytest.mark.parametrize("stage", ["advertise", "upload"])
@pytest.mark.parametrize(
    "content",
    [
        Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=f"<class>:<'{CANARY}'>"),
        wire.pack(refusal="x" * 100 + CANARY),
        wire.pack(refusal="r" * 1_000_000),
        wire.pack(message=CANARY.encode()),
        wire.pack(message=b"\0" * 1_000_000),
        wire.pack(loss=CANARY),
        RecordDict(),
    ],
    ids=["error text", "refusal text", "endless refusal", "garbage", "zeros", "metric", "empty"],
)
def test_a_device_that_sends_text_is_left_out_and_its_text_goes_nowhere(
    fleet, tmp_path, stage, content
):
    result, notes, ledger = run_round(fleet, stage, replying(content), tmp_path)
    assert result is not None
    assert result.survivors == (2, 3, 4)
    assert any(f"client 1 left at {stage}" in line for line in notes)
    assert all(len(line) < 200 and CANARY not in line for line in notes)
    assert CANARY not in ledger


def test_all_devices_that_refuse_abort_the_round_by_name(fleet, tmp_path):
    play = Play(fleet)
    fleet.say(1, "advertise", instruction=play.instruction.document)
    fleet.say(2, "advertise", instruction=play.instruction.document)
    notes = Notes()
    memory = CounterMemory(tmp_path / "counters.json")
    runner = RoundRunner(fleet.grid, list(fleet.nodes), notes, 60, memory)
    with pytest.raises(RoundAbortedError, match="2 advertisers, need 3"):
        runner.run(play.instruction, fleet.vector, None)
    assert sum("declined by rule replay" in line for line in notes.lines) == 2


def enrolled(fleet, tmp_path, content):
    """Who is in the roster when device 1 answers with `content`."""
    grid = Interposed(fleet.grid, wire.ENROLL, replying(content))
    members = enrol(grid, fleet.config, fleet.authority, tmp_path)
    assert len(members) == len({member.key for member in members})
    kept = (tmp_path / CERTIFICATES_FILE).read_bytes()
    assert kept == b"".join(member.certificate for member in members)
    return [member.node for member in members]


def test_a_device_that_enrols_without_a_certificate_of_its_own(fleet, tmp_path):
    """It stops nobody else from taking part."""
    own, other = (fleet.devices[i].certificate for i in (0, 1))
    for content in (
        wire.pack(key=fleet.roster[0], certificate=other),
        wire.pack(key=fleet.roster[1], certificate=own),
        wire.pack(key=fleet.roster[0]),
        wire.pack(key=fleet.roster[0], certificate=CANARY.encode()),
        wire.pack(key=b"", certificate=own),
        wire.pack(refusal=CANARY),
        Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=CANARY),
    ):
        assert enrolled(fleet, tmp_path, content) == [102, 103, 104]
    # another's certificate, whole: one key still has one place
    assert len(enrolled(fleet, tmp_path, wire.pack(key=fleet.roster[1], certificate=other))) == 3
