"""Recorded transcripts replay byte for byte; recorded bad messages fail the check they name."""

import json

import pytest

from fedattn.errors import ProtocolError
from fedattn.secagg import client
from fedattn.secagg.wire import Stage
from tests.secagg.harness import STATEMENT
from tests.secagg.record_vectors import BAD
from tests.secagg.test_client_checks import RNG
from tests.secagg.transcripts import FOLDER, ROUNDS, Recorded, load, messages_of, record

ROUND_OF = {}


def finished(name):
    """The replayed round, run once."""
    if name not in ROUND_OF:
        ROUND_OF[name] = Recorded(load(name))
        ROUND_OF[name].run()
    return ROUND_OF[name]


@pytest.mark.parametrize("name", ROUNDS)
def test_a_transcript_replays_byte_for_byte(name):
    transcript, r = load(name), finished(name)
    assert messages_of(r) == transcript["messages"]
    assert list(r.server.survivor_indices) == transcript["survivors"]
    assert r.server.total().tolist() == transcript["sum"]
    plain = [transcript["vectors"][i - 1] for i in transcript["survivors"]]
    modulus = 1 << r.spec.modulus_bits
    assert [sum(column) % modulus for column in zip(*plain, strict=True)] == transcript["sum"]
    assert bytes.fromhex(transcript["statement"]) == STATEMENT


@pytest.mark.parametrize("name", ROUNDS)
def test_what_is_recorded_is_what_the_script_would_record(name):
    assert record(name) == load(name)


def cases(to):
    for name, (_, side, _) in BAD.items():
        if side == to:
            document = load(name)
            for case in document["cases"]:
                yield pytest.param(document["transcript"], case, id=f"{name}: {case['name']}")


@pytest.mark.parametrize(("name", "case"), list(cases("client")))
def test_a_bad_message_to_a_client_fails_its_check(name, case):
    r, stage, member = finished(name), Stage[case["stage"]], case["member"]
    key, state, message = r.keys[member], r.state(stage, member), bytes.fromhex(case["hex"])
    step = {
        Stage.SHARE: lambda: client.share(state, key, message, RNG),
        Stage.UPLOAD: lambda: client.upload(state, key, message, r.vectors[member]),
        Stage.CONFIRM: lambda: client.confirm(state, key, message, STATEMENT),
        Stage.UNMASK: lambda: client.unmask(state, key, message),
    }[stage]
    with pytest.raises(ProtocolError) as caught:
        step()
    assert caught.value.check == case["check"], str(caught.value)


@pytest.mark.parametrize(("name", "case"), list(cases("server")))
def test_a_bad_message_to_the_server_fails_its_check(name, case):
    stage, member = Stage[case["stage"]], case["member"]
    message = bytes.fromhex(case["hex"])
    r = Recorded(load(name)).until(stage)
    r.gone = {**r.gone, stage: {*r.gone.get(stage, ()), member}}
    getattr(r, stage.name.lower())()
    accept = {
        Stage.ADVERTISE: r.server.advertised,
        Stage.SHARE: r.server.shared,
        Stage.UPLOAD: r.server.uploaded,
        Stage.CONFIRM: lambda i, m: r.server.confirmed(i, m, STATEMENT),
        Stage.UNMASK: r.server.revealed,
    }[stage]
    with pytest.raises(ProtocolError) as caught:
        accept(member, message)
    assert caught.value.check == case["check"], str(caught.value)
    accept(member, r.sent[stage, member])  # and the true one is still welcome


def test_the_files_are_these_and_small():
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == {*ROUNDS, *BAD}
    assert sum(path.stat().st_size for path in FOLDER.glob("*.json")) < 1_000_000
    checks = {case["check"] for name in BAD for case in load(name)["cases"]}
    assert len(checks) > 40
    assert all(json.dumps(load(name)) for name in names)
