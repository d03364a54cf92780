"""A lying server that speaks Flower: whatever was not agreed is answered by a rule's name."""

import json
from datetime import UTC, datetime

import pytest
from flwr.app import ConfigRecord, RecordDict

import fedattn.contribution
from fedattn.certificates import make_authority
from fedattn.flower import wire
from tests.attacks.adversary import RNG
from tests.attacks.fleet import STAGES, Fleet, Play

CANARY = "CANARY: hunter2"
ANSWERING = STAGES[1:]


def finish(play, after, survivors=(1, 2, 3, 4)):
    """The rest of the round goes on with those that are left, and its sum is decoded."""
    for stage in STAGES[STAGES.index(after) + 1 :]:
        play.stage(stage, survivors)
    assert play.server.survivor_indices == tuple(survivors)
    play.instruction.codec.decode_mean(play.server.total(), len(survivors), RNG)


# ---- a server's messages


@pytest.mark.parametrize("message_type", ["query.dump", "train.anything", "evaluate", "query"])
def test_a_message_type_there_is_not(fleet, message_type):
    play = Play(fleet).until("share")
    reply = fleet.ask(1, message_type, wire.pack(instruction=play.name))
    assert reply.has_error()
    assert play.name.hex() not in reply.error.reason
    finish(play, "advertise")  # and nothing is lost by it


@pytest.mark.parametrize("missing", ["instruction", "message", "vector", "intent"])
def test_a_message_that_lacks_a_field(tmp_path, missing):
    fleet = Fleet(tmp_path, train={"rounds": len(STAGES)})
    for stage in STAGES:
        play = Play(fleet, fleet.instruction(STAGES.index(stage) + 1)).until(stage)
        fields = play.fields(stage, 1)
        if missing in fields:
            del fields[missing]
            assert fleet.say(1, stage, **fields) == "wire"
            assert not fleet.holds_round(1)
            if stage != "advertise":  # the round had begun, and is over
                assert fleet.say(1, stage, **play.fields(stage, 1)) == "stage"


def test_fields_of_another_type_and_records_of_another_name(fleet):
    play = Play(fleet).until("share")
    document = play.instruction.document
    for content in (
        RecordDict(),
        RecordDict({"other": ConfigRecord({"instruction": play.name})}),
        RecordDict({"fedattn": ConfigRecord({"instruction": play.name.hex(), "message": "text"})}),
        RecordDict({"fedattn": ConfigRecord({"instruction": [1, 2], "message": 3.0})}),
        RecordDict({"fedattn": ConfigRecord({"instruction": document.decode()})}),
    ):
        for stage in STAGES:
            reply = fleet.ask(1, wire.STAGES[stage], content)
            assert wire.refusal(reply) in ("wire", "stage")


@pytest.mark.parametrize("stage", ANSWERING)
def test_another_instructions_hash_ends_the_round_on_that_device(fleet, stage):
    play = Play(fleet).until(stage)
    other = fleet.instruction(2).sha256
    fields = {**play.fields(stage, 1), "instruction": other}
    assert fleet.say(1, stage, **fields) == "instruction"
    assert not fleet.holds_round(1)
    assert fleet.say(1, stage, **play.fields(stage, 1)) == "stage"
    if stage in ("share", "upload"):
        play.stage(stage, (2, 3, 4))
        finish(play, stage, (2, 3, 4))


@pytest.mark.parametrize("stage", ANSWERING)
def test_a_stage_before_any_round_is_open(fleet, stage):
    fields = {"instruction": fleet.instruction().sha256, "message": b"", "intent": b"{}"}
    assert fleet.say(1, stage, **fields) == "stage"


def test_replaying_advertise_for_one_instruction(fleet):
    """The second answer would have other keys, for the server to show to other peers."""
    document = fleet.instruction().document
    assert isinstance(fleet.say(1, "advertise", instruction=document), bytes)
    assert fleet.say(1, "advertise", instruction=document) == "replay"
    assert not fleet.holds_round(1)
    fleet.restart()
    assert fleet.say(1, "advertise", instruction=document) == "replay"


def test_a_weaker_instruction_for_one_device(fleet):
    weaker = json.loads(fleet.instruction().document)
    weaker["config"]["privacy"]["noise_multiplier"] = 0.01
    document = json.dumps(weaker, sort_keys=True, separators=(",", ":")).encode()
    assert fleet.say(1, "advertise", instruction=document) == "config.privacy"
    assert fleet.say(1, "advertise", instruction=document + b" ") == "instruction.canonical"
    assert fleet.say(1, "advertise", instruction=b"\xff") == "instruction.format"


def test_sending_upload_twice_trains_once(fleet):
    play = Play(fleet).until("upload")
    fields = play.fields("upload", 1)
    first = fleet.say(1, "upload", **fields)
    assert isinstance(first, bytes)
    assert fleet.say(1, "upload", **fields) == "stage"
    assert fleet.spent(1) == ["accepted", "spent"]
    assert not fleet.holds_round(1)  # whoever was asked twice says no more in this round
    assert fleet.say(1, "unmask", **fields) == "stage"


@pytest.mark.parametrize("mailbox", [b"", b"\0" * 200])
def test_packets_that_cannot_be_used_are_refused_before_data_are_read(fleet, mailbox):
    play = Play(fleet).until("upload")
    fields = {**play.fields("upload", 1), "message": mailbox}
    assert fleet.say(1, "upload", **fields) == "decode"
    assert fleet.spent(1) == ["accepted"]


def test_an_upload_before_its_turn_is_refused_before_data_are_read(fleet):
    play = Play(fleet)
    play.stage("advertise")
    fields = {"instruction": play.name, "message": b"", "vector": fleet.vector, "witnesses": b""}
    assert isinstance(fleet.say(1, "upload", **fields), str)
    assert fleet.spent(1) == ["accepted"]


@pytest.mark.parametrize("stage", ["share", "confirm", "unmask"])
def test_asking_for_a_stage_twice(fleet, stage):
    play = Play(fleet).until(stage)
    fields = play.fields(stage, 1)
    assert isinstance(fleet.say(1, stage, **fields), bytes)
    assert fleet.say(1, stage, **fields) == "stage"
    assert not fleet.holds_round(1)


def test_a_second_round_opened_in_the_midst_of_the_first(fleet):
    first = Play(fleet).until("confirm")
    second = Play(fleet, fleet.instruction(2))
    assert isinstance(fleet.say(1, "advertise", **second.fields("advertise", 1)), bytes)
    assert fleet.say(1, "confirm", **first.fields("confirm", 1)) == "instruction"


def test_other_weights_than_the_instruction_names_are_refused_before_data_is_read(
    fleet, monkeypatch
):
    play = Play(fleet).until("upload")
    monkeypatch.setattr(fedattn.contribution, "records", lambda *_: pytest.fail("data was read"))
    fields = play.fields("upload", 1)
    crafted = fields["vector"] * 1e30
    assert fleet.say(1, "upload", **{**fields, "vector": crafted}) == "model"
    assert fleet.spent(1) == ["accepted"]


def test_a_vector_of_another_length_or_type(fleet):
    for round_, change in enumerate((lambda v: v[:-1], lambda v: v.double()), 1):
        play = Play(fleet, fleet.instruction(round_)).until("upload")
        fields = play.fields("upload", 1)
        assert fleet.say(1, "upload", **{**fields, "vector": change(fields["vector"])}) == "wire"


INTENTS = {
    "kind": "release",
    "prev": "11" * 32,
    "body.instruction_sha256": "22" * 32,
    "body.round": 2,
}


@pytest.mark.parametrize("key", INTENTS)
def test_swapping_the_intent_that_survivors_sign(fleet, key):
    play = Play(fleet).until("confirm")
    entry = json.loads(play.intent)
    *above, leaf = key.split(".")
    (entry[above[0]] if above else entry)[leaf] = INTENTS[key]
    fields = {**play.fields("confirm", 1), "intent": json.dumps(entry).encode()}
    assert fleet.say(1, "confirm", **fields) == "intent"
    assert not fleet.holds_round(1)


@pytest.mark.parametrize("intent", [b"", b"null", b"{}", b"[1]", b"\xff", b'{"kind":"intent"}'])
def test_an_intent_that_is_no_ledger_entry(fleet, intent):
    play = Play(fleet).until("confirm")
    fields = {**play.fields("confirm", 1), "intent": intent}
    assert fleet.say(1, "confirm", **fields) == "intent"


def test_garbage_in_place_of_any_protocol_message(tmp_path):
    fleet = Fleet(tmp_path, train={"rounds": len(ANSWERING)})
    for round_, stage in enumerate(ANSWERING, 1):
        play = Play(fleet, fleet.instruction(round_)).until(stage)
        fields = play.fields(stage, 1)
        rule = fleet.say(1, stage, **{**fields, "message": fields["message"][:-1] + b"\xff\xff"})
        assert isinstance(rule, str)
        assert rule != "internal"
        assert not fleet.holds_round(1)


def test_members_of_the_servers_own_making(fleet):
    """The server shows a device other certificates: none is remembered, and no text leaves."""
    servers_own = make_authority(RNG, "authority", at=datetime.now(UTC), valid_days=9)
    for bundle in (servers_own.certificate, CANARY.encode()):
        reply = fleet.ask(1, wire.MEMBERS, wire.pack(certificates=bundle))
        assert wire.refusal(reply).startswith("certificate.")
        assert CANARY not in wire.refusal(reply)
    assert wire.refusal(fleet.ask(1, wire.MEMBERS, wire.pack(certificates=b""))) is None
    document = fleet.instruction().document
    assert fleet.say(1, "advertise", instruction=document) == "certified"
