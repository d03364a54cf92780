"""A server that wants updates in clear: from devices that agreed to masks it gets none."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

import fedattn.contribution
from fedattn.config import config_from_dict
from fedattn.device import Device
from fedattn.errors import ConfigError, ProtocolError, RefusalError
from fedattn.flower import client_app, wire
from fedattn.policy import Limits, OwnData, Policy, load_policy
from fedattn.secagg import arithmetic, client
from fedattn.secagg.arithmetic import ArithmeticRound
from fedattn.secagg.wire import EVERYONE, Role, Stage, header
from tests.attacks.adversary import RNG
from tests.attacks.fleet import Fleet, Play
from tests.federation import tiny
from tests.secagg.harness import make_spec

CLEAR = {"secure_aggregation": "arithmetic"}


@pytest.fixture
def unreadable(monkeypatch):
    """Training, which reads private data, fails the test."""
    monkeypatch.setattr(
        fedattn.contribution, "contribute", lambda *_: pytest.fail("private data was read")
    )


def plain(fleet, i, play):
    """Device i's answer to a server of a round without masks: no shares, no witnesses."""
    return fleet.say(i, "upload", instruction=play.name, vector=fleet.vector)


@pytest.mark.parametrize("stage", ["share", "upload", "confirm", "unmask"])
def test_a_masked_round_answers_no_upload_without_shares(fleet, stage):
    """At any stage; and the device is out of the round, so that no second try follows."""
    play = Play(fleet).until(stage)
    spent = fleet.spent(1)
    assert plain(fleet, 1, play) in ("wire", "stage")
    assert not fleet.holds_round(1)
    assert plain(fleet, 1, play) == "stage"
    assert fleet.spent(1) == spent  # nothing was trained for it


@pytest.mark.parametrize("mailbox", ["empty", "plain", "own"])
def test_nothing_in_place_of_shares_makes_a_masked_round_plain(fleet, unreadable, mailbox):
    play = Play(fleet).until("upload")
    fields = play.fields("upload", 1)
    sent = {
        "empty": b"",
        "plain": header(play.instruction.spec, Stage.UPLOAD, Role.SERVER, EVERYONE),
        "own": arithmetic._STATE + b"\3" + (1).to_bytes(4, "big"),
    }[mailbox]
    refusals = ("decode", "message.index", "message.stage")
    assert fleet.say(1, "upload", **{**fields, "message": sent}) in refusals
    assert not fleet.holds_round(1)
    assert fleet.spent(1) == ["accepted"]


def test_an_instruction_without_masks_is_not_what_was_agreed(fleet, unreadable):
    other = tiny(fleet.config.data.path, **CLEAR)
    document = fleet.instruction(config=other).document
    assert fleet.say(1, "advertise", instruction=document) == "config.secure_aggregation"
    assert not fleet.holds_round(1)
    assert fleet.spent(1) == []


def test_the_document_of_a_masked_round_cannot_be_swapped_for_a_plain_one(fleet, unreadable):
    """The device looks up how to answer in what it accepted, under the hash it was asked by."""
    play = Play(fleet).until("upload")
    clear = fleet.instruction(config=tiny(fleet.config.data.path, **CLEAR))
    fields = {"instruction": clear.sha256, "vector": fleet.vector}
    assert fleet.say(1, "upload", **fields) == "instruction"
    assert not fleet.holds_round(1)
    assert plain(fleet, 1, play) == "stage"


def test_a_device_with_limits_takes_part_in_no_round_without_masks(tmp_path, unreadable):
    fleet = Fleet(tmp_path, **CLEAR)
    own = OwnData(path=str(fleet.config.data.path))
    limits = Limits(
        modes=["conversation/local"],
        max_epsilon=1000.0,
        min_cohort=1,
        model_starts=["random"],
    )
    device = Device(fleet.devices[0].folder, Policy(data=own, limits=limits), 0)
    with pytest.raises(RefusalError) as caught:
        device.accept(fleet.instruction())
    assert caught.value.rule == "masks"
    masked = tiny(fleet.config.data.path)
    assert device.accept(fleet.instruction(config=masked)) == 1  # as it would with them


def test_no_policy_of_a_device_with_data_of_its_own_agrees_to_it(tmp_path):
    config = tiny(tmp_path / "data.jsonl", **CLEAR)
    Policy.agreed(config).save(tmp_path / "policy.yaml")
    assert load_policy(tmp_path / "policy.yaml").agreed_config == config
    with pytest.raises(ValueError, match="arithmetic is for simulations alone"):
        Policy.agreed(config, data=OwnData(path="mine.jsonl"))


# ---- and in a round that agreed to do without, no stage of a masked one is answered


class Clear:
    """An honest round without masks, one device at a time."""

    def __init__(self, fleet):
        self.fleet, self.instruction = fleet, fleet.instruction()
        self.server, self.name = ArithmeticRound(self.instruction.spec), self.instruction.sha256
        body = {"instruction_sha256": self.name.hex(), "round": self.instruction.round}
        entry = {"kind": "intent", "prev": self.instruction.ledger_head, "body": body}
        self.intent = json.dumps(entry).encode()

    def advertise(self, only=(1, 2, 3, 4)):
        for i in only:
            content = wire.pack(instruction=self.instruction.document)
            reply = self.fleet.ask(i, wire.ADVERTISE, content)
            assert set(reply.content.config_records["fedattn"]) == {"counter"}
            self.server.advertised(i)
        return self

    def upload(self, only=(1, 2, 3, 4)):
        assert self.server.uploads.absent is None
        for i in only:
            message = plain(self.fleet, i, self)
            assert isinstance(message, bytes), message
            self.server.uploaded(i, message)
        return self

    def confirm(self, i, message=None, intent=None):
        return self.fleet.say(
            i,
            "confirm",
            instruction=self.name,
            message=message or self.server.survivors(),
            intent=intent or self.intent,
        )


@pytest.fixture
def clear(tmp_path):
    return Clear(Fleet(tmp_path, **CLEAR))


def test_a_round_without_masks_ends_with_its_confirmations(clear):
    clear.advertise().upload()
    statement = hashlib.sha256(clear.intent).digest()
    for i in (1, 2, 3, 4):
        clear.server.confirmed(i, clear.confirm(i), statement)
        assert not clear.fleet.holds_round(i)  # nothing follows
        assert clear.fleet.spent(i) == ["accepted", "spent"]
    clear.instruction.codec.decode_mean(clear.server.total(), 4, RNG)


@pytest.mark.parametrize("stage", ["share", "unmask"])
def test_a_round_without_masks_has_no_stage_of_one_with_them(clear, stage):
    clear.advertise()
    fields = {"instruction": clear.name, "message": b"", "counters": b""}
    assert clear.fleet.say(1, stage, **fields) == "stage"
    assert not clear.fleet.holds_round(1)


def test_confirming_before_uploading_and_uploading_twice(clear):
    clear.advertise().upload((2, 3, 4))
    assert clear.confirm(1) == "stage"
    assert plain(clear.fleet, 2, clear) == "stage"
    assert clear.fleet.spent(2) == ["accepted", "spent"]
    assert not clear.fleet.holds_round(2)


def test_other_weights_and_another_intent_are_refused_as_in_a_masked_round(clear):
    clear.advertise().upload((1, 2, 3))
    crafted = {"instruction": clear.name, "vector": clear.fleet.vector + 1}
    assert clear.fleet.say(4, "upload", **crafted) == "model"
    assert clear.fleet.spent(4) == ["accepted"]
    assert clear.confirm(1, intent=clear.intent.replace(b"intent", b"release", 1)) == "intent"
    assert clear.confirm(2, message=b"\xff") == "decode"


def test_neither_kind_of_round_takes_the_others_steps(finished):
    spec, key = finished.spec, finished.keys[1]
    clear = replace(spec, is_masked=False)
    for call in (
        lambda: client.advertise(clear, 1, key, RNG),
        lambda: arithmetic.begin(spec, 1, key),
        lambda: arithmetic.ArithmeticState(spec, 1),
    ):
        with pytest.raises(ProtocolError, match=r"^masks: "):
            call()
    sparse = make_spec(9, 7, degree=4, share_threshold=3)
    with pytest.raises(ProtocolError, match=r"^spec\.degree: "):
        replace(sparse, is_masked=False)


def test_a_state_of_another_kind_of_round_is_of_no_use(fleet):
    """What a device keeps of a masked round cannot be resumed by the plain path, nor back."""
    play = Play(fleet).until("upload")
    context = fleet.grid._contexts[101]
    stored = context.state.config_records[client_app.ROUND_RECORD]["state"]
    spec = replace(play.instruction.spec, is_masked=False)
    with pytest.raises(ProtocolError, match=r"^decode: "):
        arithmetic.ArithmeticState.from_bytes(stored, spec)
    with pytest.raises(ProtocolError, match=r"^masks: "):
        arithmetic.begin(play.instruction.spec, 1, fleet.devices[0].identity)


def test_there_are_two_kinds_of_rounds():
    raw = tiny("data.jsonl").model_dump(mode="json")
    assert config_from_dict({**raw, **CLEAR}).secure_aggregation == "arithmetic"
    with pytest.raises(ConfigError, match="secure_aggregation"):
        config_from_dict({**raw, "secure_aggregation": "none"})
