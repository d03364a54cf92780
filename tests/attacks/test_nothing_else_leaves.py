"""The server reads every message and looks for anything but masked vectors and protocol bytes."""

from datetime import UTC, datetime

import numpy as np
import pytest
from flwr.common.serde import message_to_proto

from fedattn import contribution, device, ledger, train
from fedattn import simulate as simulate_module
from fedattn.data.jsonl import read_jsonl
from fedattn.data.splits import client_of, split_of
from fedattn.flower import enrolment, wire
from fedattn.simulate import new_run_dir, simulate
from tests.federation import conversations, tiny, write

CANARY = "CANARY-7f3a"
VICTIM = 1  # the client whose data differ
WIDE = {"outsider": 200.0}  # a budget that two rounds of little noise do not pass
MODES = {
    "conversation/local": {},
    "conversation/distributed": {
        "privacy": {"noise": "distributed", "epsilon_budget": WIDE},
        "train": {"local_steps": 1},
    },
    "client/distributed": {
        "privacy": {"unit": "client", "noise": "distributed", "epsilon_budget": WIDE}
    },
    "client/server": {"privacy": {"unit": "client", "noise": "server", "epsilon_budget": WIDE}},
}
each_mode = pytest.mark.parametrize("mode", MODES)


def seeded(path, mode="conversation/local", rounds=2):
    """Predictable, so that two runs differ where their data make them differ and nowhere else."""
    changes = MODES[mode]
    train = {**changes.get("train", {}), "rounds": rounds}
    return tiny(path, seed=11, **{**changes, "train": train})


class Tap:
    """Keeps every message as (route, fields, bytes on the wire)."""

    def __init__(self):
        self.messages = []

    def __call__(self, message):
        meta = message.metadata
        route = (meta.src_node_id, meta.dst_node_id, meta.message_type, meta.group_id)
        fields = {}
        if message.has_content():
            for name, record in message.content.config_records.items():
                fields.update({f"{name}.{key}": value for key, value in record.items()})
            for name, arrays in message.content.array_records.items():
                fields.update({f"{name}.{key}": array.data for key, array in arrays.items()})
            assert not message.content.metric_records
        raw = message_to_proto(message).SerializeToString()
        self.messages.append((route, fields, message.has_error(), raw))


class FrozenTime(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime(2026, 1, 1, tzinfo=tz or UTC)


@pytest.fixture(autouse=True)
def _frozen_time(monkeypatch):
    for module in (ledger, simulate_module, device, enrolment):
        monkeypatch.setattr(module, "datetime", FrozenTime)


def tapped(config, run_dir):
    tap = Tap()
    result = simulate(config, new_run_dir(config, run_dir), taps=[tap])
    return tap.messages, result


def victims_conversations(path, config):
    """Ids of the training conversations that the victim alone holds."""
    return {
        dialogue.id
        for dialogue in read_jsonl(path).dialogues
        if split_of(dialogue, config.data) == "train" and client_of(dialogue, config.data) == VICTIM
    }


@pytest.fixture(params=MODES)
def two_worlds(request, tmp_path):
    """Messages of two seeded runs whose data differ in the victim's conversations alone."""
    path = write(tmp_path / "data.jsonl", conversations())
    config = seeded(path, request.param, rounds=1)
    mine = victims_conversations(path, config)
    assert mine
    ours, _ = tapped(config, tmp_path / "ours")
    other = {item["id"]: item for item in conversations(flavour=1)}
    write(path, [other[item["id"]] if item["id"] in mine else item for item in conversations()])
    assert victims_conversations(path, config) == mine
    theirs, _ = tapped(config, tmp_path / "theirs")
    return config, ours, theirs


def masked_words(message):
    """The masked words (d,) in an upload's bytes, and b: they are modulo 2^b."""
    bits, d = message[39], int.from_bytes(message[40:44], "big")
    size = 2 if bits <= 16 else 4
    assert len(message) == 39 + 1 + 4 + size * d + 64  # header, bits, length, words, signature
    return np.frombuffer(message[44:-64], f"<u{size}").astype(np.int64), bits


def test_routes_fields_types_and_lengths_do_not_depend_on_data(two_worlds):
    _, ours, theirs = two_worlds
    shape = [
        (route, error, {key: (type(value), len(value)) for key, value in fields.items()})
        for route, fields, error, _ in ours
    ]
    assert shape == [
        (route, error, {key: (type(value), len(value)) for key, value in fields.items()})
        for route, fields, error, _ in theirs
    ]


def test_only_the_victims_masked_words_and_their_signature_differ(two_worlds):
    _, ours, theirs = two_worlds
    differing = [
        (route, key)
        for (route, mine, *_), (_, other, *_) in zip(ours, theirs, strict=True)
        for key in mine
        if mine[key] != other[key]
    ]
    assert differing == [((100 + VICTIM, 1, wire.UPLOAD, "1"), "fedattn.message")]
    first, second = (
        next(
            fields["fedattn.message"]
            for route, fields, *_ in world
            if route == (100 + VICTIM, 1, wire.UPLOAD, "1")
        )
        for world in (ours, theirs)
    )
    assert first[:44] == second[:44]
    words = [masked_words(message)[0] for message in (first, second)]
    assert (words[0] != words[1]).mean() > 0.5


@each_mode
def test_removing_all_of_a_clients_data_changes_no_type_and_no_length(tmp_path, mode):
    path = write(tmp_path / "data.jsonl", conversations())
    config = seeded(path, mode)
    mine = victims_conversations(path, config)
    ours, _ = tapped(config, tmp_path / "ours")
    write(path, [item for item in conversations() if item["id"] not in mine])
    theirs, result = tapped(config, tmp_path / "theirs")
    assert result.report.totals.rounds_released == 2
    assert [(route, error, len(raw)) for route, _, error, raw in ours] == [
        (route, error, len(raw)) for route, _, error, raw in theirs
    ]


def failing_for_victim(monkeypatch, what):
    """Make `what` raise on the victim alone, with the canary in its text."""
    if what == "reading":
        original = contribution.records

        def records(config, index, vocab_size):
            if index == VICTIM:
                raise ValueError(f"line 3: {CANARY}")
            return original(config, index, vocab_size)

        monkeypatch.setattr(contribution, "records", records)
    elif what == "training":
        monkeypatch.setattr(train, "record_losses", _raise)
    elif what == "drawing":
        monkeypatch.setattr(train._Steps, "draw", _raise)


def _raise(*_arguments):
    raise RuntimeError(f"CUDA out of memory while at {CANARY}")


@each_mode
@pytest.mark.parametrize("what", ["reading", "training", "drawing"])
def test_an_exception_after_reading_data_reaches_the_server_as_nothing_at_all(
    tmp_path, monkeypatch, what, mode
):
    path = write(tmp_path / "data.jsonl", conversations())
    config = seeded(path, mode)
    plain, _ = tapped(config, tmp_path / "plain")
    failing_for_victim(monkeypatch, what)
    failing, result = tapped(config, tmp_path / "failing")
    assert result.report.totals.rounds_released == 2
    assert all(CANARY.encode() not in raw for *_, raw in failing)
    assert [(route, error, len(raw)) for route, _, error, raw in plain] == [
        (route, error, len(raw)) for route, _, error, raw in failing
    ]
    written = [item for item in (tmp_path / "failing").rglob("*") if item.is_file()]
    assert all(CANARY.encode() not in item.read_bytes() for item in written)


def test_an_exception_before_data_is_read_is_a_refusal_without_its_text(tmp_path, monkeypatch):
    def broken(*_arguments):
        raise OSError(CANARY)

    path = write(tmp_path / "data.jsonl", conversations())
    monkeypatch.setattr(device.Device, "train", broken)
    messages, result = tapped(tiny(path, train={"rounds": 1}), tmp_path / "run")
    assert result.report.outcome == "aborted"
    assert all(CANARY.encode() not in raw for *_, raw in messages)
    replies = [fields for route, fields, *_ in messages if route[1:3] == (1, wire.UPLOAD)]
    assert replies == [{"fedattn.refusal": "internal"}] * 4


def test_no_conversation_text_crosses_the_wire_or_enters_the_run_directory(tmp_path):
    items = conversations()
    for item in items:
        item["turns"][1]["text"] += f" {CANARY}"
    config = tiny(write(tmp_path / "data.jsonl", items))
    messages, _ = tapped(config, tmp_path / "run")
    assert all(CANARY.encode() not in raw for *_, raw in messages)
    assert all(
        CANARY.encode() not in item.read_bytes()
        for item in (tmp_path / "run").rglob("*")
        if item.is_file()
    )


def test_a_server_cannot_make_an_update_absent_by_weights_that_overflow(tmp_path, monkeypatch):
    """Weights crafted to overflow on some records: the reply comes, finite, as always."""
    path = write(tmp_path / "data.jsonl", conversations())
    config = tiny(path, train={"rounds": 1})
    original = device.Device.train

    def crafted(self, instruction, vector):
        monkeypatch.setattr(device, "vector_sha256", lambda *_: instruction.model_sha256)
        return original(self, instruction, vector * 1e30)

    monkeypatch.setattr(device.Device, "train", crafted)
    messages, result = tapped(config, tmp_path / "run")
    assert result.report.totals.rounds_released == 1
    assert not any(error for _, _, error, _ in messages)


def test_the_masked_words_of_one_client_look_uniform(two_worlds):
    _, ours, _ = two_worlds
    message = next(
        fields["fedattn.message"]
        for route, fields, *_ in ours
        if route == (100 + VICTIM, 1, wire.UPLOAD, "1")
    )
    words, bits = masked_words(message)
    assert not (words >> bits).any()  # the modulus may have fewer bits than a word
    for eight in (words & 255, words >> (bits - 8)):  # the lowest bits and the highest
        counts = np.bincount(eight, minlength=256)
        expected = counts.sum() / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < 255 + 6 * (2 * 255) ** 0.5
