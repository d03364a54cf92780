"""The device decides: what it refuses before it reads data, and what it spends before it trains."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from dataclasses import replace

import pytest
import torch

import fedattn.contribution
import fedattn.records
import fedattn.train
from fedattn.checkpoint import model_sha256, read_vector, released_sha256
from fedattn.contribution import installed_start
from fedattn.data import load_partition
from fedattn.device import Device
from fedattn.errors import RefusalError
from fedattn.instruction import Instruction
from fedattn.model import trainable_names
from fedattn.policy import Policy
from fedattn.privacy.accountants import spend
from fedattn.privacy.events import NoNoise, PoissonGaussian, event_to_dict, round_event
from fedattn.tokens import Tokenizer
from tests.federation import certified

CANARY = "canary: my password is hunter2"


def read_line(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(path):
    """Of all lines after the first."""
    return [line["kind"] for line in read_line(path)[1:]] if path.exists() else []


class Federation:
    """Devices, the first of which is under test, and the server's view of round 1."""

    def __init__(self, folder, config, members=3):
        self.config, self.policy = config, Policy.agreed(config)
        self.members = [Device(folder / f"device-{i}", self.policy, i) for i in range(members)]
        self.device = self.members[0]
        self.authority, self.certificates = certified(self.members, folder)
        self.roster = tuple(member.identity.public_bytes for member in self.members)
        model, self.start = installed_start(config.model, config.seed)
        self.vector = read_vector(model, trainable_names(model, config.model.trainable))
        self.spend_path = folder / "device-0" / "spend.jsonl"

    def instruction(self, round_=1, **changes):
        fields = {
            "config": self.config,
            "run": "00" * 32,
            "round": round_,
            "start_sha256": self.start,
            "model_sha256": released_sha256(self.start, self.vector),
            "dimension": len(self.vector),
            "ledger_head": "00" * 32,
            "roster": self.roster,
            "event": round_event(self.config, len(self.vector)),
        }
        return Instruction(**{**fields, **changes})

    def again(self):
        """The same device after a restart."""
        return Device(self.device.folder, self.policy)


@pytest.fixture
def federate(tmp_path, make_config):
    """Makes a federation over a small JSONL file of this client's conversations."""

    def make(members=3, **changes):
        lines = [
            {
                "id": f"c{i}",
                "turns": [
                    {"speaker": f"p{i}-{j % 2}", "text": f"this is turn {j} of {i}"}
                    for j in range(4)
                ],
            }
            for i in range(40)
        ]
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = {"data__source": "jsonl", "data__path": str(data)}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return Federation(folder, make_config(**source, **changes), members)

    return make


@pytest.fixture
def unreadable(monkeypatch):
    """Makes every read of private data fail the test."""

    def fail(*_):
        raise AssertionError("private data was read")

    monkeypatch.setattr(fedattn.contribution, "load_partition", fail)
    monkeypatch.setattr(fedattn.contribution, "records", fail)


def test_an_agreed_instruction_is_accepted_at_its_place_in_the_roster(federate, unreadable):
    federation = federate()
    assert federation.device.accept(federation.instruction()) == 1
    turned = federation.roster[1:] + federation.roster[:1]
    assert federation.device.accept(federation.instruction(2, roster=turned)) == 3


def test_an_empty_list_of_revoked_certificates_is_not_taken_for_nobody(federate, unreadable):
    federation = federate()
    held = federation.device.folder / "revoked.crl"
    held.write_bytes(b"")  # cut short by a full disk
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(federation.instruction())
    assert caught.value.rule == "revoked"
    certificates = (federation.device.folder / "members.pem").read_bytes()
    with pytest.raises(RefusalError, match=r"revoked: revoked\.crl is empty"):
        federation.device.meet(certificates, b"a list, whichever")
    assert held.read_bytes() == b""
    held.unlink()
    assert federation.device.accept(federation.instruction()) == 1  # nothing was spent


OTHER_SECTIONS = [
    ("privacy", {"privacy__noise_multiplier": 0.9}),
    ("privacy", {"privacy__clip_norm": 0.6}),
    ("privacy", {"privacy__sampling_rate": 0.6}),
    ("privacy", {"privacy__epsilon_budget": 9.0}),
    ("privacy", {"privacy__delta": 2e-6}),
    (
        "privacy",
        {"privacy__unit": "none", "privacy__noise": "none", "privacy__epsilon_budget": None},
    ),
    ("secagg", {"secagg__threshold": 3}),
    ("secagg", {"secagg__clip_range": 0.25}),
    ("train", {"train__local_steps": 3}),
    ("train", {"train__expected_batch_size": 1}),
    ("train", {"train__learning_rate": 2.0}),
    ("model", {"model__trainable": "bias_norm"}),
    ("seed", {"seed": 5}),
]


@pytest.mark.parametrize(("section", "changes"), OTHER_SECTIONS, ids=str)
def test_a_config_it_did_not_agree_to_is_refused(
    federate, make_config, unreadable, section, changes
):
    federation = federate()
    other = make_config(**changes)
    event = round_event(other, len(federation.vector))
    instruction = federation.instruction(config=other, event=event)
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(instruction)
    assert caught.value.rule == f"config.{section}"
    assert kinds(federation.spend_path) == []


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("event", {"event": PoissonGaussian(0.5, 1.0, 1)}),
        ("event", {"event": NoNoise()}),
        ("roster", {"roster": "without"}),
        ("roster", {"roster": "twice"}),
        ("roster", {"roster": ()}),
        ("cohort", {"roster": "alone"}),
        ("start_model", {"start_sha256": "ab" * 32}),
        ("dimension", {"dimension": 7}),
    ],
)
def test_what_breaks_a_rule_is_refused_by_its_name(federate, unreadable, rule, changes):
    federation = federate()
    own, *peers = federation.roster
    rosters = {"without": tuple(peers), "twice": (own, own, *peers), "alone": (own,)}
    if isinstance(named := changes.get("roster"), str):
        changes = {"roster": rosters[named]}
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(federation.instruction(**changes))
    assert caught.value.rule == rule
    assert kinds(federation.spend_path) == []


def test_one_instruction_is_answered_once_even_after_a_restart(federate, unreadable):
    federation = federate()
    federation.device.accept(federation.instruction())
    for device in (federation.device, federation.again()):
        with pytest.raises(RefusalError) as caught:
            device.accept(federation.instruction())
        assert caught.value.rule == "replay"
    assert federation.again().accept(federation.instruction(2)) == 1


def test_the_budget_holds_over_the_devices_life(federate):
    federation = federate(privacy__epsilon_budget=7.0)

    def live_through(rounds):
        instruction = federation.instruction(rounds + 1)
        device = federation.again()
        device.accept(instruction)
        device.train(instruction, federation.vector)

    rounds = 0
    with contextlib.suppress(RefusalError):
        for rounds in range(20):
            live_through(rounds)
    assert 0 < rounds < 20
    assert kinds(federation.spend_path).count("spent") == rounds
    with pytest.raises(RefusalError) as caught:
        live_through(rounds)
    assert caught.value.rule == "budget"


def test_a_first_round_beyond_the_budget_is_refused(federate, unreadable):
    federation = federate(privacy__epsilon_budget=0.5)
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(federation.instruction())
    assert caught.value.rule == "budget"


def test_no_more_rounds_than_the_device_agreed_to(federate):
    federation = federate(privacy__max_participations=2, privacy__epsilon_budget=15.0)
    for round_ in (1, 2):
        federation.device.accept(federation.instruction(round_))
        federation.device.train(federation.instruction(round_), federation.vector)
    for device in (federation.device, federation.again()):
        with pytest.raises(RefusalError) as caught:
            device.accept(federation.instruction(3))
        assert caught.value.rule == "participations"


def test_a_cohort_above_the_federations_size_is_refused(federate, unreadable):
    federation = federate(data__clients=2)  # all three devices are certified
    with pytest.raises(RefusalError, match="above the 2 clients") as caught:
        federation.device.accept(federation.instruction())
    assert caught.value.rule == "cohort"
    assert kinds(federation.spend_path) == []
    assert federation.device.accept(federation.instruction(roster=federation.roster[:2])) == 1


def test_another_number_of_clients_than_agreed_is_refused(federate, make_config, unreadable):
    """The noise of a simulated cohort is scaled by it."""
    federation = federate()
    fewer = make_config(data__clients=2)
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(federation.instruction(config=fewer))
    assert caught.value.rule == "config.data.clients"
    assert kinds(federation.spend_path) == []


def test_a_sampled_cohort_is_introduced_anew_in_each_round(federate, unreadable):
    """Whom a device was shown for another round is nobody whose roster it follows in this one."""
    federation = federate(
        members=6,
        data__clients=6,
        privacy__unit="client",
        privacy__noise="distributed",
        privacy__client_rate=0.9,
        privacy__noise_multiplier=3.0,
        privacy__epsilon_budget={"outsider": 20.0},
        secagg__threshold=3,
        secagg__max_colluding=1,
    )
    first, second = (0, 1, 2, 3), (0, 3, 4, 5)

    def instruction(round_, cohort):
        return federation.instruction(round_, roster=tuple(federation.roster[i] for i in cohort))

    def meet(cohort):
        federation.device.meet(b"".join(federation.members[i].certificate for i in cohort))

    meet(first)
    assert federation.device.accept(instruction(1, first)) == 1
    for device in (federation.device, federation.again()):
        with pytest.raises(RefusalError) as caught:
            device.accept(instruction(2, second))
        assert caught.value.rule == "certified"
    meet(second)
    assert federation.device.accept(instruction(2, second)) == 1
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(instruction(3, first))
    assert caught.value.rule == "certified"


def test_an_accepted_instruction_that_never_trained_costs_nothing(
    federate, make_config, unreadable
):
    config = make_config()
    one = spend([round_event(config, 1)], config.privacy.delta).epsilon
    federation = federate(privacy__epsilon_budget=1.1 * one)
    for round_ in range(1, 4):
        federation.device.accept(federation.instruction(round_))
    assert kinds(federation.spend_path) == 3 * ["accepted"]


def test_two_open_rounds_do_not_pass_the_budget_together(federate, make_config):
    config = make_config()
    one = spend([round_event(config, 1)], config.privacy.delta).epsilon
    federation = federate(privacy__epsilon_budget=1.1 * one)
    first, second = federation.instruction(1), federation.instruction(2)
    for instruction in (first, second):
        federation.device.accept(instruction)
    federation.device.train(first, federation.vector)
    with pytest.raises(RefusalError):
        federation.device.train(second, federation.vector)


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_spent(federate, unreadable):
    federation = federate(train__device="cuda:7")
    instruction = federation.instruction()
    federation.device.accept(instruction)
    with pytest.raises(RefusalError, match=r"^device: "):
        federation.device.train(instruction, federation.vector)
    assert kinds(federation.spend_path) == ["accepted"]


def test_a_device_whose_cleaning_cannot_run_declines_before_it_spends(federate, monkeypatch):
    federation = federate(data__clean={"mask_pii": True})
    instruction = federation.instruction()
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(RefusalError, match=r"^cleaning: "):
        federation.device.accept(instruction)
    assert not federation.spend_path.exists()
    monkeypatch.undo()
    federation.device.accept(instruction)
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(RefusalError, match=r"^cleaning: "):
        federation.device.train(instruction, federation.vector)
    assert kinds(federation.spend_path) == ["accepted"]


def test_what_was_not_accepted_or_was_trained_before_does_not_train(federate):
    federation = federate()
    with pytest.raises(RefusalError):
        federation.device.train(federation.instruction(), federation.vector)


def test_the_spend_is_on_disk_before_data_is_read_and_before_training(federate, monkeypatch):
    federation = federate()
    instruction = federation.instruction()
    federation.device.accept(instruction)
    seen, synced, true_fsync = [], [], os.fsync
    true_records = fedattn.contribution.records

    def look(stage):
        seen.append((stage, read_line(federation.spend_path)[-1]["kind"], bool(synced)))

    def records(*args):
        look("read")
        return true_records(*args)

    def train(*args):
        look("train")
        return fedattn.train.train_locally(*args)

    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), true_fsync(handle)))
    monkeypatch.setattr(fedattn.contribution, "records", records)
    monkeypatch.setattr(fedattn.contribution, "train_locally", train)
    federation.device.train(instruction, federation.vector)
    assert seen == [("read", "spent", True), ("train", "spent", True)]
    body = read_line(federation.spend_path)[-1]["body"]
    assert body["instruction"] == instruction.sha256.hex()
    assert body["event"] == event_to_dict(instruction.event)


@pytest.mark.parametrize("crash", [KeyboardInterrupt, SystemExit])
def test_a_spend_survives_a_crash_in_training(federate, monkeypatch, crash):
    federation = federate()
    federation.device.accept(federation.instruction())

    def die(*_):
        raise crash

    monkeypatch.setattr(fedattn.contribution, "train_locally", die)
    with pytest.raises(crash):
        federation.device.train(federation.instruction(), federation.vector)
    restarted = federation.again()
    spent = [answer.event for answer in restarted.ledger.read().spent]
    assert spent == [round_event(federation.config, len(federation.vector))]
    with pytest.raises(RefusalError, match="replay"):
        restarted.accept(federation.instruction())


def fail_to_load(monkeypatch):
    def fail(*_):
        raise RuntimeError(CANARY)

    monkeypatch.setattr(fedattn.contribution, "load_partition", fail)


def fail_to_tokenize(monkeypatch):
    def fail(*_):
        raise UnicodeEncodeError("utf-8", CANARY, 0, 1, CANARY)

    monkeypatch.setattr(fedattn.records, "tokenize", fail)


def fail_to_train(monkeypatch):
    def fail(model, *_):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)  # as if it broke in the midst of a step
        raise MemoryError(CANARY)

    monkeypatch.setattr(fedattn.contribution, "train_locally", fail)


@pytest.mark.parametrize("failure", [fail_to_load, fail_to_tokenize, fail_to_train])
def test_a_failure_after_reading_data_leaves_as_noise_and_as_nothing_else(
    federate, monkeypatch, capfd, caplog, failure
):
    federation = federate(model__trainable="all", train__expected_batch_size=2)
    fedattn.contribution._tokenized.cache_clear()
    failure(monkeypatch)
    federation.device.accept(federation.instruction())
    result = federation.device.train(federation.instruction(), federation.vector)
    std = 1.0 * 0.5 / 2 * math.sqrt(2)  # rate 1, sigma 1, C 0.5, divisor 2, two steps
    n = result.delta.numel()
    assert abs(float((result.delta.double() / std).square().sum()) - n) < 5 * math.sqrt(2 * n)
    line, cost = read_line(federation.spend_path)[-1], federation.instruction().event
    assert (line["kind"], line["body"]["event"]) == ("spent", event_to_dict(cost))
    files = [p.read_bytes() for p in federation.device.folder.rglob("*") if p.is_file()]
    out, err = capfd.readouterr()
    for place in (repr(result), out, err, caplog.text, *map(repr, files)):
        assert "hunter2" not in place


def test_a_conversation_that_cannot_be_tokenised_does_not_take_others_with_it(
    federate, monkeypatch
):
    federation = federate()
    tokenizer, true_tokenize = Tokenizer(257), fedattn.records.tokenize
    own = load_partition(federation.config.data).train[0]
    assert len(own) > 2
    expected = true_tokenize(own[:1] + own[2:], tokenizer, 512)

    def fail(dialogues, *rest):
        if own[1] in dialogues:
            raise RuntimeError(CANARY)
        return true_tokenize(dialogues, *rest)

    monkeypatch.setattr(fedattn.records, "tokenize", fail)
    assert list(fedattn.contribution.records(*federation.device.data, tokenizer)) == expected


class Panic(BaseException):
    """As of compiled code (pyo3's PanicException): no Exception, raised by one private text."""


def test_a_conversation_on_which_the_tokenizer_panics_is_absent_alone(federate, monkeypatch):
    federation = federate()
    tokenizer, true_tokenize = Tokenizer(257), fedattn.records.tokenize
    own = load_partition(federation.config.data).train[0]
    expected = true_tokenize(own[:1] + own[2:], tokenizer, 512)

    def panic(dialogues, *rest):
        if own[1] in dialogues:
            raise Panic(CANARY)
        return true_tokenize(dialogues, *rest)

    fedattn.contribution._tokenized.cache_clear()
    monkeypatch.setattr(fedattn.records, "tokenize", panic)
    assert list(fedattn.contribution.records(*federation.device.data, tokenizer)) == expected


@pytest.mark.parametrize("place", ["load_partition", "records", "train_locally"])
def test_a_panic_after_reading_data_leaves_as_noise_of_its_own(federate, monkeypatch, place):
    """As if the device held nothing; the process that serves the next message lives on."""
    federation, made = federate(seed=3), []
    true_noise_only = fedattn.contribution.noise_only

    def panic(*_):
        raise Panic(CANARY)

    def spy(*args):
        made.append(true_noise_only(*args).delta)
        return fedattn.train.LocalResult(made[-1])

    fedattn.contribution._tokenized.cache_clear()
    monkeypatch.setattr(fedattn.contribution, place, panic)
    monkeypatch.setattr(fedattn.contribution, "noise_only", spy)
    federation.device.accept(federation.instruction())
    result = federation.device.train(federation.instruction(), federation.vector)
    assert len(made) == 1
    assert torch.equal(result.delta, made[0])
    assert result.delta.any()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("place", ["training_records", "train_locally"])
def test_what_asks_the_process_to_end_is_obeyed(federate, monkeypatch, place, end):
    federation = federate()

    def leave(*_):
        raise end

    fedattn.contribution._tokenized.cache_clear()
    monkeypatch.setattr(fedattn.contribution, place, leave)
    federation.device.accept(federation.instruction())
    with pytest.raises(end):
        federation.device.train(federation.instruction(), federation.vector)


def test_noise_after_a_failure_is_not_that_of_the_failed_attempt(federate, monkeypatch):
    """Steps may have used the first stream: the same noise again would cancel in a difference."""
    federation = federate(seed=3)
    streams = []

    def fail(*args):
        streams.append(args[-1].child("noise").bytes(16))
        raise MemoryError

    true_noise_only = fedattn.contribution.noise_only

    def spy(*args):
        streams.append(args[-1].child("noise").bytes(16))
        return true_noise_only(*args)

    monkeypatch.setattr(fedattn.contribution, "train_locally", fail)
    monkeypatch.setattr(fedattn.contribution, "noise_only", spy)
    federation.device.accept(federation.instruction())
    federation.device.train(federation.instruction(), federation.vector)
    assert len(set(streams)) == 2


def test_training_starts_from_the_given_model_and_no_other(federate):
    federation = federate()
    instruction = federation.instruction()
    federation.device.accept(instruction)
    other = federation.vector.clone()
    other[0] += 1
    with pytest.raises(RefusalError) as caught:
        federation.device.train(instruction, other)
    assert caught.value.rule == "model"
    assert kinds(federation.spend_path) == ["accepted"]
    named = federation.instruction(2, model_sha256=released_sha256(federation.start, other))
    federation.device.accept(named)
    federation.device.train(named, other)
    model, start = installed_start(federation.config.model, None)
    assert torch.equal(read_vector(model, trainable_names(model, "all")), other)
    assert start == federation.start
    federation.device.train(instruction, federation.vector)  # the shared model is as it was
    assert model_sha256(model) == start


def test_a_device_trains_on_its_own_conversations(federate):
    federation = federate()
    tokenizer = Tokenizer(257)
    part = load_partition(federation.config.data)
    for index, dialogues in enumerate(part.train):
        device = Device(federation.device.folder, federation.policy, index)
        records = fedattn.contribution.records(*device.data, tokenizer)
        texts = [[tokenizer.decode(turn) for turn in record.turns] for record in records]
        assert texts == [[turn.text for turn in d.turns] for d in dialogues]
    assert sum(map(len, part.train)) > 0


def test_an_unseeded_device_never_repeats_its_noise_and_a_seeded_one_does(federate):
    def delta_of(federation):
        federation.device.accept(federation.instruction())
        return federation.device.train(federation.instruction(), federation.vector).delta

    assert not federate().device.randomness("train").is_seeded
    assert not torch.equal(delta_of(federate()), delta_of(federate()))
    assert torch.equal(delta_of(federate(seed=1)), delta_of(federate(seed=1)))
    device = federate(seed=1).device
    other = Device(device.folder, device.policy, 1)
    assert other.randomness("train").bytes(8) != device.randomness("train").bytes(8)


def test_the_identity_is_made_once_and_kept(federate):
    federation = federate()
    first = federation.device.identity.public_bytes
    assert federation.again().identity.public_bytes == first
    assert federation.device.folder.joinpath("identity.pem").stat().st_mode & 0o077 == 0


def test_a_refusal_holds_a_rule_and_no_number_of_this_device(federate, unreadable):
    federation = federate(privacy__epsilon_budget=0.5)
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(federation.instruction())
    assert str(caught.value) == "budget: epsilon against outsider would pass its budget"
    stranger = replace(federation.instruction(), roster=())
    with pytest.raises(RefusalError) as caught:
        federation.device.accept(stranger)
    assert str(caught.value) == "roster: must list this device exactly once"
