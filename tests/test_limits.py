"""A device in a deployment: its own file, its own limits, one ledger for all federations."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedattn import contribution, device_ledger
from fedattn.certificates import Authority, make_revocations
from fedattn.checkpoint import read_vector
from fedattn.contribution import installed_start
from fedattn.data import load_partition
from fedattn.device import Device
from fedattn.entries import Release
from fedattn.errors import ProtocolError, RefusalError
from fedattn.flower import wire
from fedattn.flower.client_app import app
from fedattn.flower.grid import EmbeddedGrid
from fedattn.flower.observer import SilentObserver
from fedattn.flower.server_app import app as server_app
from fedattn.instruction import Instruction
from fedattn.ledger import read_ledger
from fedattn.model import trainable_names
from fedattn.policy import Limits, OwnData, Policy
from fedattn.privacy.events import NoNoise, round_event
from fedattn.privacy.rows import life_epsilon
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey
from fedattn.start import vector_sha256
from tests.federation import certified, conversations, tiny, write
from tests.opened import opened, was_opened

LIMITS = {"max_epsilon": 50.0, "min_cohort": 3, "model_starts": ["random"]}


class Federation:
    """Four devices, each with a shard of one data set, and what a server may ask of the first."""

    def __init__(self, folder, name="here", shards=None, seed=None, **changes):
        self.folder = folder / name
        folder.mkdir(exist_ok=True)
        data = {"salt": "a"} | changes.pop("data", {})  # a salt that gives every device some
        path = write(folder / "all.jsonl", conversations())
        self.config = tiny(path, seed=seed, data=data, **changes)
        self.shards = shards or self._cut(folder)
        self.devices = [self.device(i) for i in range(4)]
        self.authority, self.certificates = certified(self.devices, self.folder)
        model, self.start = installed_start(self.config.model, seed)
        names = trainable_names(model, self.config.model.trainable)
        self.vector = read_vector(model, names).numpy()

    def _cut(self, folder):
        items = {item["id"]: item for item in conversations()}
        paths = []
        for i, part in enumerate(load_partition(self.config.data).train):
            paths.append(folder / f"shard-{i}.jsonl")
            assert part
            lines = [json.dumps(items[dialogue.id]) + "\n" for dialogue in part]
            paths[-1].write_text("".join(sorted(lines, reverse=True)))
        return paths

    def policy(self, i=0, **limits):
        return Policy(
            data=OwnData(path=str(self.shards[i])),
            limits=Limits(**{**LIMITS, **limits}),
            seed=self.config.seed,
            threads=1,
        )

    def device(self, i=0, **limits):
        """Device i as after a restart, with other limits if told so."""
        return Device(self.folder / f"device-{i}", self.policy(i, **limits), i)

    def instruction(self, round_=1, **changes):
        config = changes.get("config", self.config)
        fields = {
            "config": config,
            "run": sha256(self.folder.name.encode()).hexdigest(),
            "round": round_,
            "start_sha256": self.start,
            "model_sha256": vector_sha256(self.start, self.vector),
            "dimension": len(self.vector),
            "ledger_head": "00" * 32,
            "roster": tuple(device.identity.public_bytes for device in self.devices),
            "event": round_event(config, len(self.vector)),
        }
        return Instruction(**{**fields, **changes})

    def live_through(self, round_, device=None):
        device, instruction = device or self.device(), self.instruction(round_)
        device.accept(instruction)
        return device.train(instruction, self.vector).delta

    def ledger(self, i=0):
        return Path(f"{self.shards[i]}.ledger.jsonl")

    def kinds(self, i=0):
        path = self.ledger(i)
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["kind"] for line in lines[1:]]


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


def declined(call, *arguments):
    with pytest.raises(RefusalError) as caught:
        call(*arguments)
    return str(caught.value)


def changed(federation, **changes):
    config = tiny(federation.config.data.path, **changes)
    return federation.instruction(config=config)


def test_what_is_within_the_limits_is_accepted_before_data_is_opened(federation):
    with opened() as seen:
        assert federation.device().accept(federation.instruction()) == 1
    assert not was_opened(seen, federation.shards[0])
    assert was_opened(seen, federation.ledger())
    federation.device().train(federation.instruction(), federation.vector)
    assert federation.kinds() == ["accepted", "spent"]
    assert not (federation.folder / "device-0" / "spend.jsonl").exists()


NONE = {"unit": "none", "noise": "none", "epsilon_budget": None}
PRETENDED = {
    "unit": "client",
    "noise": "distributed",
    "hypothetical": {"cohort": 9, "population": 99},
}
REFUSALS = {
    "mode": lambda f: (changed(f, privacy=NONE), {}),
    "noise": lambda f: (changed(f, privacy={"noise_multiplier": 0.4}), {}),
    "clip_norm": lambda f: (changed(f, privacy={"clip_norm": 1.5}), {}),
    "cohort": lambda f: (f.instruction(), {"min_cohort": 4}),
    "colluding": lambda f: (f.instruction(), {"min_colluding": 2}),
    "seed": lambda f: (changed(f, seed=1), {}),
    "hypothetical": lambda f: (changed(f, privacy=PRETENDED), {}),
    "start_model": lambda f: (f.instruction(), {"model_starts": ["public"]}),
    "start_model ": lambda f: (f.instruction(start_sha256="ab" * 32), {}),
    "dimension": lambda f: (f.instruction(dimension=7), {}),
    "event": lambda f: (f.instruction(event=NoNoise()), {}),
    "work": lambda f: (changed(f, train={"draws": 17}), {}),
    "roster": lambda f: (f.instruction(roster=f.instruction().roster[1:]), {}),
    "cohort ": lambda f: (f.instruction(roster=f.instruction().roster[:2]), {}),
    "cohort  ": lambda f: (changed(f, data={"clients": 3}), {}),
    "certified": lambda f: (f.instruction(roster=(*f.instruction().roster[:3], bytes(32))), {}),
    "budget": lambda f: (f.instruction(), {"max_epsilon": 0.1}),
    "budget ": lambda f: (f.instruction(), {"max_epsilon": {"unmasked": 0.1}}),
}


@pytest.mark.parametrize("rule", REFUSALS)
def test_what_is_beyond_a_limit_is_refused_before_data_is_opened(federation, rule):
    instruction, limits = REFUSALS[rule](federation)
    with opened() as seen:
        said = declined(federation.device(**limits).accept, instruction)
    assert said.startswith(f"{rule.strip()}: ")
    assert not was_opened(seen, federation.shards[0])
    assert federation.kinds() == []
    federation.device().accept(federation.instruction())  # nothing was lost but this round


def test_one_participation_too_many_is_refused_over_all_runs(federation):
    federation.live_through(1)
    federation.live_through(2)
    for round_ in (3, 4):
        with opened() as seen:
            said = declined(
                federation.device(max_participations=2).accept, federation.instruction(round_)
            )
        assert said == "participations: this device has taken part as often as it may"
        assert not was_opened(seen, federation.shards[0])


def test_spends_of_two_federations_over_one_file_add_up(tmp_path):
    """Another authority, other keys, another config: the same conversations."""
    here = Federation(tmp_path, "here")
    there = Federation(tmp_path, "there", here.shards, train={"learning_rate": 0.1})
    one = life_epsilon([here.instruction().event], "server", 1e-5)
    two = life_epsilon([here.instruction().event] * 2, "server", 1e-5)
    for federation in (here, there):
        federation.live_through(1)
    assert here.kinds() == ["accepted", "spent"] * 2
    signers = {json.loads(line)["key"] for line in here.ledger().read_text().splitlines()}
    assert len(signers) == 2
    for federation in (here, there):
        device = federation.device(max_epsilon=(two + 0.01))
        assert declined(device.accept, federation.instruction(2)).startswith("budget: ")
        assert one < two < 50
        federation.device().accept(federation.instruction(2))


def test_a_symlink_to_the_data_is_the_same_data(federation):
    federation.live_through(1)
    link = federation.folder / "link.jsonl"
    link.symlink_to(federation.shards[0])
    policy = federation.policy().model_copy(update={"data": OwnData(path=str(link))})
    device = Device(federation.folder / "device-0", policy)
    assert device.ledger.path == federation.ledger()
    assert len(device.ledger.read().spent) == 1


def test_a_ledger_beside_other_data_than_its_own_is_refused(federation):
    federation.live_through(1)
    os.replace(federation.ledger(0), federation.ledger(1))
    said = declined(federation.device(1).accept, federation.instruction(2))
    assert said == (
        "spend_ledger: was begun for a data file of another name; give the data file its old name "
        "back, or put its own ledger beside it"
    )


@pytest.mark.parametrize("place", ["/proc/version", "/sys/data.jsonl"])
def test_where_no_ledger_can_be_written_nothing_is_accepted(federation, place):
    policy = federation.policy().model_copy(update={"data": OwnData(path=place)})
    device = Device(federation.folder / "device-0", policy)
    with opened() as seen:
        said = declined(device.accept, federation.instruction())
    assert said == "spend_ledger: cannot be written on this device"
    assert not was_opened(seen, Path(place))


def test_a_full_disk_is_refused_before_data_is_opened(federation):
    """/dev/full takes no byte."""
    federation.ledger().symlink_to("/dev/full")
    with opened() as seen:
        said = declined(federation.device().accept, federation.instruction())
    assert said == "spend_ledger: cannot be written on this device"
    assert not was_opened(seen, federation.shards[0])


def test_a_disk_that_fills_up_between_acceptance_and_training_trains_nothing(federation):
    device, instruction = federation.device(), federation.instruction()
    device.accept(instruction)
    stored = federation.ledger().read_bytes()
    federation.ledger().unlink()
    federation.ledger().symlink_to("/dev/full")
    with opened() as seen:
        said = declined(device.train, instruction, federation.vector)
    assert said.startswith(("accepted: ", "spend_ledger: "))
    assert not was_opened(seen, federation.shards[0])
    federation.ledger().unlink()
    federation.ledger().write_bytes(stored)
    device.train(instruction, federation.vector)


def test_the_spend_is_synced_before_data_is_opened_and_before_the_reply(federation, monkeypatch):
    order, true_fsync = [], os.fsync

    def fsync(handle):
        order.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        true_fsync(handle)

    true_records = contribution.records

    def records(*arguments):
        with opened() as seen:
            found = true_records(*arguments)
        order.extend(("open", name) for name in seen if name == str(federation.shards[0]))
        return found

    device, instruction = federation.device(), federation.instruction()
    device.accept(instruction)
    contribution._tokenized.cache_clear()
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(contribution, "records", records)
    device.train(instruction, federation.vector)
    order.append(("reply", ""))
    assert order == [
        ("fsync", str(federation.ledger())),
        ("open", str(federation.shards[0])),
        ("reply", ""),
    ]


def test_a_torn_spend_was_never_answered_and_costs_nothing(federation):
    federation.live_through(1)
    os.truncate(federation.ledger(), federation.ledger().stat().st_size - 20)
    device_ledger._known.clear()
    device = federation.device()
    assert device.ledger.read().spent == ()
    assert federation.kinds() == ["accepted", "cut"]
    device.train(federation.instruction(), federation.vector)
    assert federation.kinds() == ["accepted", "cut", "spent"]


def test_a_shard_is_trained_on_as_in_the_simulation(tmp_path):
    """Seeded: bit for bit what client i of a simulation over the whole file computes."""
    federation = Federation(tmp_path, seed=3)
    for i in range(4):
        own = federation.live_through(1, federation.device(i))
        simulated = Device(tmp_path / f"simulated-{i}", Policy.agreed(federation.config), i)
        data, index = simulated.data
        randomness = simulated.randomness("train", "1")
        expected = contribution.contribute(
            federation.config, data, index, federation.vector, randomness
        )
        assert torch.equal(own, expected.delta)
        other = contribution.contribute(
            federation.config, data, (index + 1) % 4, federation.vector, randomness
        )
        assert not torch.equal(own, other.delta)


def test_conversations_added_to_the_file_train_in_the_next_round(tmp_path):
    federation = Federation(tmp_path, seed=3)
    before = federation.device().data
    first = contribution.records(*before, contribution.Tokenizer(260))
    with federation.shards[0].open("a") as file:
        added = {**conversations()[0], "id": "one more"}
        file.write(json.dumps(added) + "\n")
    again = contribution.records(*before, contribution.Tokenizer(260))
    assert len(again) == len(first) + 1


def test_a_file_that_cannot_be_read_contributes_noise(federation):
    federation.shards[0].write_text("no JSON\n")
    delta = federation.live_through(1)
    assert np.isfinite(delta.numpy()).all()
    assert float(delta.abs().max()) > 0
    assert federation.kinds() == ["accepted", "spent"]


def test_a_device_places_training_itself(federation, monkeypatch):
    asked = []
    true_train = contribution.train_locally

    def train(model, tokenizer, records, config, randomness):
        asked.append(config.train)
        return true_train(model, tokenizer, records, config, randomness)

    monkeypatch.setattr(contribution, "train_locally", train)
    wished = tiny(
        federation.config.data.path, train={"device": "cuda:7", "threads": 64, "rounds": 2}
    )
    policy = federation.policy().model_copy(update={"device": "cpu", "max_batch_bytes": 1 << 24})
    device = Device(federation.folder / "device-0", policy)
    instruction = federation.instruction(config=wished)
    device.accept(instruction)
    device.train(instruction, federation.vector)
    assert (asked[0].device, asked[0].threads, asked[0].max_batch_bytes) == ("cpu", 1, 1 << 24)
    assert asked[0].learning_rate == wished.train.learning_rate


def test_a_conversation_that_does_not_fit_in_memory_is_declined_before_data_is_opened(federation):
    """By its owner's bound: a device with a record would fail where one without answers."""
    policy = federation.policy().model_copy(update={"max_batch_bytes": 400_000})
    device = Device(federation.folder / "device-0", policy)
    with opened() as seen:
        said = declined(device.accept, changed(federation, train={"draws": 16}))
    assert said.startswith("work: one conversation takes ")
    assert not was_opened(seen, federation.shards[0])
    assert federation.kinds() == []
    device.accept(federation.instruction())


def test_members_that_cannot_be_remembered_are_not_met(federation):
    device = federation.device()
    (device.folder / "members.pem").unlink()
    (device.folder / "members.pem.part").mkdir()  # nothing can be written under this name
    said = declined(device.meet, federation.certificates)
    assert said == "folder: cannot be written on this device"
    assert declined(device.accept, federation.instruction()).startswith("certified: ")


# ---- certificates taken back


def revocations(federation, number, *devices, days=9):
    key = SigningKey.load(federation.folder / "authority" / "authority-key.pem")
    serials = [device._certified(device.certificate) for device in devices]
    revoked = [serial for found in serials for serial in found.values()]
    authority = Authority(key, federation.authority)
    return make_revocations(authority, revoked, number, at=datetime.now(UTC), valid_days=days)


def test_a_roster_with_a_revoked_member_is_refused(federation):
    device = federation.device()
    device.meet(federation.certificates, revocations(federation, 1))
    device.accept(federation.instruction(1))
    device.meet(federation.certificates, revocations(federation, 2, federation.devices[3]))
    for again in (device, federation.device()):
        said = declined(again.accept, federation.instruction(2))
        assert said == "revoked: the roster lists a key that the authority took back"
    others = federation.instruction(2, roster=federation.instruction().roster[:3])
    device.accept(others)


def test_an_older_list_does_not_replace_a_newer_one(federation):
    device = federation.device()
    newer = revocations(federation, 5, federation.devices[3])
    device.meet(federation.certificates, newer)
    for older in (revocations(federation, 4), revocations(federation, 5)):
        with pytest.raises(ProtocolError, match=r"certificate\.revocations\.rollback"):
            device.meet(federation.certificates, older)
        assert (device.folder / "revoked.crl").read_bytes() == newer
    device.meet(federation.certificates)  # a server that shows none
    assert declined(device.accept, federation.instruction()).startswith("revoked: ")


def test_a_list_of_another_authority_is_refused_and_not_kept(federation, tmp_path):
    device = federation.device()
    other = Federation(tmp_path / "other", shards=federation.shards)
    with pytest.raises(ProtocolError, match=r"certificate\.revocations\.issuer"):
        device.meet(federation.certificates, revocations(other, 9))
    assert not (device.folder / "revoked.crl").exists()


def test_a_list_that_ended_stops_the_device_until_it_is_renewed(federation, monkeypatch):
    """So nobody can keep a newer one from it for longer than that."""
    device = federation.device()
    device.meet(federation.certificates, revocations(federation, 1, days=1))

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=2)

    monkeypatch.setattr("fedattn.device.datetime", Later)
    with pytest.raises(ProtocolError, match=r"certificate\.revocations\.expired"):
        device.accept(federation.instruction())


def test_the_revoked_field_of_the_members_message_reaches_the_device(federation):
    device, path = federation.device(), federation.folder / "policy.yaml"
    federation.policy().save(path)
    grid = EmbeddedGrid(app, {1: {"device-dir": str(device.folder), "policy": str(path)}})

    def show(revoked):
        content = wire.pack(certificates=federation.certificates, revoked=revoked)
        (reply,) = grid.send_and_receive([grid.create_message(content, wire.MEMBERS, 1, "0")])
        return wire.refusal(reply)

    assert show(revocations(federation, 2, federation.devices[2])) is None
    assert (device.folder / "revoked.crl").exists()
    assert show(revocations(federation, 1)) == "certificate.revocations.rollback"
    assert show(b"garbage") == "certificate.revocations.format"


# ---- the round goes on without a device that declines


class Listener(SilentObserver):
    """Keeps what a person would be told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"max_epsilon": 0.1}, "budget"),
        ({"min_noise_multiplier": 2.0}, "noise"),
        ({"max_clip_norm": 0.1}, "clip_norm"),
        ({"min_cohort": 4}, "cohort"),
        ({"modes": ["client/distributed"]}, "mode"),
        ({"max_participations": 1}, "participations"),
    ],
)
def test_the_round_goes_on_without_the_device_that_declines(tmp_path, limits, rule):
    federation = Federation(tmp_path, train={"rounds": 2})
    for i, device in enumerate(federation.devices):
        federation.policy(i, **(limits if i == 2 else {})).save(device.folder / "policy.yaml")
    grid = EmbeddedGrid(
        app, {11 + i: {"device-dir": str(each.folder)} for i, each in enumerate(federation.devices)}
    )
    grid.observer = listener = Listener()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    SigningKey.generate(Randomness.from_os()).save(run_dir / "server.pem")
    run_config = {
        "config-json": federation.config.canonical_json(),
        "run-dir": str(run_dir),
        "server-key": str(run_dir / "server.pem"),
        "authority": str(federation.folder / "authority" / "authority.pem"),
        "authority-held-by": "a test",
        "nodes": "",
        "revoked": "",
        "resume": "",
        "created-by": "a test",
    }
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), run_config))
    releases = [entry.body for entry in read_ledger(run_dir / "ledger.jsonl")]
    survivors = [body.survivors for body in releases if isinstance(body, Release)]
    assert survivors == ([4, 3] if rule == "participations" else [3, 3])
    declined_ = [note for note in listener.notes if "declined" in note]
    assert len(declined_) == (1 if rule == "participations" else 2)
    assert all(
        note.endswith(f"client 3 left at advertise: declined by rule {rule}") for note in declined_
    )
    assert federation.kinds(0) == ["accepted", "spent"] * 2
    assert federation.kinds(2) == (["accepted", "spent"] if rule == "participations" else [])
