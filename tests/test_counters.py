"""Counters: what a restored ledger looks like to those who remember, and who can forge what."""

from __future__ import annotations

import json
import os

import pytest

from fedattn.counters import (
    COUNTER_BYTES,
    Counter,
    CounterMemory,
    join,
    require_witnesses,
    split,
)
from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

ROUND = b"\x01" * 32
KEYS = [SigningKey.generate(Randomness.seeded(9, "counters", str(i))) for i in range(5)]


def counter(count: int, *, key: SigningKey = KEYS[0], head: int = 7, round_: bytes = ROUND):
    return Counter.sign(key, round_, count, bytes([head]) * 32)


@pytest.fixture
def memory(tmp_path):
    return CounterMemory(tmp_path / "peers.json")


def refused(check: str):
    return pytest.raises(ProtocolError, match=rf"^counter\.{check}: ")


def test_a_counter_survives_its_bytes():
    made = [counter(3), counter(2**64 - 1, key=KEYS[1])]
    assert len(made[0].to_bytes()) == COUNTER_BYTES == 168
    assert split(join(made)) == made
    with refused("format"):
        split(join(made)[:-1])
    with refused("format"):
        Counter.parse(b"")


@pytest.mark.parametrize("place", [0, 31, 32, 63, 64, 71, 72, 103, 104, 167])
def test_no_byte_of_a_counter_can_be_changed(place, memory):
    data = bytearray(counter(3).to_bytes())
    data[place] ^= 1
    with refused("(signature|instruction)"):
        memory.check_and_remember([Counter.parse(bytes(data))], ROUND)
    assert memory.read() == {}


def test_a_restored_ledger_is_refused_by_who_remembers(memory):
    later = b"\x02" * 32
    memory.check_and_remember([counter(5)], ROUND)
    for count in (1, 4, 5):
        with refused("restored"):
            memory.check_and_remember([counter(count, round_=later, head=8)], later)
    assert memory.read()[KEYS[0].public_bytes] == counter(5)
    memory.check_and_remember([counter(6, round_=later)], later)
    assert memory.read()[KEYS[0].public_bytes].count == 6


def test_another_line_under_a_remembered_counter_is_refused_the_same_one_is_not(memory):
    memory.check_and_remember([counter(5)], ROUND)
    memory.check_and_remember([counter(5)], ROUND)
    with refused("restored"):
        memory.check_and_remember([counter(5, head=8)], ROUND)


def test_a_counter_of_another_round_is_refused(memory):
    with refused("instruction"):
        memory.check_and_remember([counter(5, round_=b"\x02" * 32)], ROUND)


def test_one_bad_counter_means_that_nothing_is_remembered(memory):
    memory.check_and_remember([counter(5)], ROUND)
    with refused("restored"):
        memory.check_and_remember([counter(9, key=KEYS[1]), counter(4)], ROUND)
    with refused("repeated"):
        memory.check_and_remember([counter(9, key=KEYS[1]), counter(8, key=KEYS[1])], ROUND)
    assert set(memory.read()) == {KEYS[0].public_bytes}


def test_who_never_met_the_device_detects_nothing(memory):
    """The stated limit, so that nobody reads more into it."""
    memory.check_and_remember([counter(1)], ROUND)


def test_the_memory_outlives_the_process_and_keeps_others(memory):
    memory.check_and_remember([counter(5), counter(2, key=KEYS[1])], ROUND)
    later = b"\x02" * 32
    memory.check_and_remember([counter(6, round_=later)], later)
    again = CounterMemory(memory.path)
    assert {key: each.count for key, each in again.read().items()} == {
        KEYS[0].public_bytes: 6,
        KEYS[1].public_bytes: 2,
    }
    assert again.newest(KEYS[1].public_bytes) == counter(2, key=KEYS[1]).to_bytes()
    assert again.newest(KEYS[2].public_bytes) == b""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": "00"}', '{"a": "zz"}'])
def test_a_damaged_memory_is_not_an_empty_one(memory, text):
    memory.path.write_text(text)
    with refused("memory"):
        memory.read()
    with refused("memory"):
        memory.check_and_remember([counter(5)], ROUND)
    assert memory.path.read_text() == text


def test_what_is_remembered_is_on_disk_before_the_call_returns(memory, monkeypatch):
    order = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), real_sync(handle))[1])
    path_type = type(memory.path)
    monkeypatch.setattr(
        path_type, "rename", lambda self, to: (order.append("rename"), real_rename(self, to))[1]
    )
    memory.check_and_remember([counter(5)], ROUND)
    assert order == ["fsync", "rename", "fsync"]
    assert len(json.loads(memory.path.read_text())) == 1


def test_a_full_disk_stops_and_leaves_the_memory_as_it_was(memory, monkeypatch):
    memory.check_and_remember([counter(5)], ROUND)
    before = memory.path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    later = b"\x02" * 32
    with refused("memory"):
        memory.check_and_remember([counter(6, round_=later)], later)
    assert memory.path.read_bytes() == before


def countersigned(own: Counter, witnesses):
    return {key.public_bytes: own.countersign(key) for key in witnesses}


MEMBERS = [key.public_bytes for key in KEYS[:4]]


def test_enough_members_must_have_countersigned():
    own = counter(5)
    signatures = countersigned(own, KEYS[1:4])
    assert require_witnesses(own, signatures, MEMBERS, 2) == tuple(MEMBERS[1:3])
    with refused("witnesses"):
        require_witnesses(own, signatures, MEMBERS, 4)


def test_neither_itself_nor_strangers_nor_forgeries_count():
    own = counter(5)
    for signatures in (
        countersigned(own, [KEYS[0]]),
        countersigned(own, [KEYS[4]]),
        {KEYS[1].public_bytes: own.countersign(KEYS[2])},
        countersigned(counter(6), [KEYS[1]]),  # what a server showed instead of the real one
        {KEYS[1].public_bytes: own.signature},
    ):
        with refused("witnesses"):
            require_witnesses(own, signatures, MEMBERS, 1)


def test_a_lying_member_stops_nobody():
    own = counter(5)
    signatures = {KEYS[1].public_bytes: bytes(64), **countersigned(own, KEYS[2:4])}
    assert require_witnesses(own, signatures, MEMBERS, 2) == tuple(MEMBERS[2:4])
