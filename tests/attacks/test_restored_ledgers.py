"""A device's ledger is put back to an old copy, so that it forgets what it spent: who notices."""

from __future__ import annotations

import shutil

import pytest

from fedattn.counters import Counter
from fedattn.flower import wire
from fedattn.flower.training import COUNTERS_FILE
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey
from tests.attacks.fleet import Fleet, Play
from tests.attacks.test_replies import run_round

ALL = (1, 2, 3, 4)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path, train={"rounds": 8})


def ledger_of(fleet, i=1):
    return fleet.folder / f"device-{i}" / "spend.jsonl"


def a_round_then_an_old_ledger(fleet, i=1):
    """Rounds 1 and 2 up to the upload; then device i has its ledger as of round 1."""
    Play(fleet, fleet.instruction(1)).until("confirm")
    shutil.copy(ledger_of(fleet, i), fleet.folder / "old.jsonl")
    Play(fleet, fleet.instruction(2)).until("confirm")
    shutil.copy(fleet.folder / "old.jsonl", ledger_of(fleet, i))
    fleet.restart()


def forget(path):
    path.unlink(missing_ok=True)


def test_the_device_itself_declines_what_it_once_signed_for(fleet):
    a_round_then_an_old_ledger(fleet)
    before = ledger_of(fleet).read_bytes()
    play = Play(fleet, fleet.instruction(3))
    assert fleet.say(1, "advertise", **play.fields("advertise", 1)) == "ledger_restored"
    assert ledger_of(fleet).read_bytes() == before
    play.stage("advertise", (2, 3, 4))  # the others go on


def test_the_round_goes_on_without_it_and_the_note_names_the_rule(fleet, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    Play(fleet).until("share")
    shutil.copy(ledger_of(fleet), fleet.folder / "old.jsonl")
    result, _, _ = run_round(fleet, "advertise", lambda reply: reply, first)
    assert result.survivors == ALL
    shutil.copy(fleet.folder / "old.jsonl", ledger_of(fleet))
    shutil.copy(first / COUNTERS_FILE, second)
    result, notes, _ = run_round(fleet, "advertise", lambda reply: reply, second)
    assert result.survivors == (2, 3, 4)
    assert "round 1: client 1 left at advertise: declined by rule ledger_restored" in notes


def test_peers_stop_a_server_that_forgets(fleet):
    a_round_then_an_old_ledger(fleet)
    forget(fleet.folder / "server-counters.json")
    play = Play(fleet, fleet.instruction(3))
    play.stage("advertise")
    for i in (2, 3, 4):
        assert fleet.say(i, "share", **play.fields("share", i)) == "counter.restored"
        assert not fleet.holds_round(i)


def test_one_peer_that_remembers_is_enough(fleet):
    a_round_then_an_old_ledger(fleet)
    forget(fleet.folder / "server-counters.json")
    for i in (2, 3):
        forget(fleet.folder / f"device-{i}" / "peers.json")
    play = Play(fleet, fleet.instruction(3))
    play.stage("advertise")
    assert fleet.say(4, "share", **play.fields("share", 4)) == "counter.restored"


def test_nothing_is_noticed_where_all_forgot(fleet):
    """The stated limit: a test of what is not protected."""
    a_round_then_an_old_ledger(fleet)
    forget(fleet.folder / "server-counters.json")
    for i in ALL:
        forget(fleet.folder / f"device-{i}" / "peers.json")
    Play(fleet, fleet.instruction(3)).until("confirm")


def test_a_server_cannot_leave_a_counter_out_or_show_one_twice(fleet):
    play = Play(fleet)
    play.stage("advertise")
    fields = play.fields("share", 2)
    counters = [play.witnesses.shown_to(play.key(2), [play.key(i)]) for i in (1, 3, 4)]
    for shown in (counters[:2], [*counters, counters[0]], [*counters[:2], counters[0]], []):
        assert fleet.say(2, "share", **{**fields, "counters": b"".join(shown)}) == "counter.members"
        play = Play(fleet, fleet.instruction(play.instruction.round + 1))
        play.stage("advertise")
        fields = play.fields("share", 2)
        counters = [play.witnesses.shown_to(play.key(2), [play.key(i)]) for i in (1, 3, 4)]


def test_a_server_cannot_make_a_counter_up(fleet):
    """Else it could hide an old ledger, or have peers shut an honest device out for ever."""
    play = Play(fleet)
    play.stage("advertise")
    true = Counter.parse(fleet.beside[1]["counter"])
    forged = Counter(true.key, true.instruction, true.count + 9, true.head, true.signature)
    shown = [forged.to_bytes(), *(fleet.beside[i]["counter"] for i in (3, 4))]
    fields = {**play.fields("share", 2), "counters": b"".join(shown)}
    assert fleet.say(2, "share", **fields) == "counter.signature"
    assert fleet.devices[1].peers.read() == {}


def test_a_server_cannot_shut_a_device_out_with_words_that_it_never_signed(fleet):
    play = Play(fleet)
    stranger = SigningKey.generate(Randomness.from_os())
    lie = Counter.sign(stranger, play.name, 99, b"\x01" * 32)
    for remembered in (lie, Counter(play.key(1), lie.instruction, 99, lie.head, lie.signature)):
        fields = {**play.fields("advertise", 1), "remembered": remembered.to_bytes()}
        assert fleet.say(1, "advertise", **fields) == "counter.signature"
    assert isinstance(fleet.say(1, "advertise", **play.fields("advertise", 1)), bytes)


@pytest.mark.parametrize("witnesses", ["none", "its own", "of a counter that it did not sign"])
def test_no_data_are_read_before_peers_remember(fleet, witnesses):
    play = Play(fleet)
    play.until("upload")
    device, counter = fleet.devices[0], Counter.parse(fleet.beside[1]["counter"])
    other = Counter.sign(fleet.devices[1].identity, play.name, 1, counter.head)
    signatures = {
        "none": b"",
        "its own": play.key(1) + counter.countersign(device.identity),
        "of a counter that it did not sign": b"".join(
            each.identity.public_bytes + other.countersign(each.identity)
            for each in fleet.devices[1:]
        ),
    }[witnesses]
    fields = {**play.fields("upload", 1), "witnesses": signatures}
    assert fleet.say(1, "upload", **fields) == "counter.witnesses"
    assert fleet.spent(1) == ["accepted"]


def test_a_device_with_a_damaged_memory_declines(fleet):
    play = Play(fleet)
    play.stage("advertise")
    (fleet.folder / "device-2" / "peers.json").write_text("{")
    assert fleet.say(2, "share", **play.fields("share", 2)) == "counter.memory"


def test_the_server_drops_a_device_whose_counter_goes_back(fleet):
    """A device that does not check itself: its operator runs other code."""
    a_round_then_an_old_ledger(fleet)
    play = Play(fleet, fleet.instruction(3))
    reply = fleet.ask(1, wire.ADVERTISE, wire.pack(instruction=play.instruction.document))
    with pytest.raises(Exception, match=r"counter\.restored"):
        play.witnesses.check(play.key(1), wire.field(reply, "counter"))
