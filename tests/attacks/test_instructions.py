"""Instructions that ask a device for more than it agreed to; it declines before it reads data."""

import json
import os
from datetime import UTC, datetime

import pytest

import fedattn.contribution
from fedattn.certificates import certify, make_authority, make_request
from fedattn.device import Device
from fedattn.errors import ProtocolError, RefusalError
from fedattn.instruction import Instruction
from fedattn.privacy.accountants import spend
from fedattn.privacy.events import NoNoise, PoissonGaussian, round_event
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey
from tests.attacks.adversary import RNG
from tests.attacks.fleet import Fleet
from tests.federation import tiny


@pytest.fixture
def unreadable(monkeypatch):
    """Reading private data fails the test."""

    def fail(*_):
        raise AssertionError("private data was read")

    monkeypatch.setattr(fedattn.contribution, "load_partition", fail)
    monkeypatch.setattr(fedattn.contribution, "records", fail)


def declined(rule, call, *args):
    with pytest.raises(RefusalError) as caught:
        call(*args)
    assert caught.value.rule == rule


def refuses(fleet, rule, **changes):
    declined(rule, fleet.devices[0].accept, fleet.instruction(**changes))
    assert fleet.spent(1) == []


def test_what_was_agreed_is_accepted(fleet, unreadable):
    assert fleet.devices[0].accept(fleet.instruction()) == 1


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("privacy", {"privacy": {"noise_multiplier": 0.1}}),
        ("privacy", {"privacy": {"clip_norm": 50.0}}),
        ("privacy", {"privacy": {"sampling_rate": 0.9}}),
        ("privacy", {"privacy": {"epsilon_budget": 1000.0}}),
        ("privacy", {"privacy": {"unit": "none", "noise": "none", "epsilon_budget": None}}),
        ("secagg", {"secagg": {"threshold": 4}}),
        ("secagg", {"secagg": {"max_colluding": 0}}),
        ("secagg", {"secagg": {"clip_range": 0.25}}),
        ("train", {"train": {"local_steps": 50}}),
        ("train", {"train": {"expected_batch_size": 1}}),
        ("train", {"train": {"learning_rate": 9.0}}),
        ("model", {"model": {"trainable": "bias_norm"}}),
        ("seed", {"seed": 5}),  # predictable noise
    ],
    ids=str,
)
def test_weaker_settings_than_the_devices_own(fleet, unreadable, section, change):
    other = tiny(fleet.config.data.path, **change)
    refuses(fleet, f"config.{section}", config=other)


def test_a_threshold_below_the_devices_own_minimum(fleet, unreadable):
    other = tiny(
        fleet.config.data.path, data={"clients": 3}, secagg={"threshold": 2, "max_colluding": 0}
    )
    refuses(fleet, "config.secagg", config=other)
    refuses(fleet, "cohort", roster=fleet.roster[:2])


@pytest.mark.parametrize(
    "event", [NoNoise(), PoissonGaussian(0.2, 1.0, 1), PoissonGaussian(0.2, 9.0, 2)]
)
def test_a_cost_that_is_not_what_the_round_costs(fleet, unreadable, event):
    refuses(fleet, "event", event=event)


def test_a_roster_without_the_device_or_with_it_many_times(fleet, unreadable):
    own, *others = fleet.roster
    for roster in (tuple(others), (own, own, *others), (own,) * 4, ()):
        refuses(fleet, "roster", roster=roster)


def test_a_cohort_too_small_to_hide_in(fleet, unreadable):
    refuses(fleet, "cohort", roster=fleet.roster[:1])
    refuses(fleet, "cohort", roster=fleet.roster[:2])


def test_a_cohort_larger_than_the_federation(tmp_path, unreadable):
    """Noise and its price are of the declared number; the authority may have certified more."""
    fleet = Fleet(tmp_path, data={"clients": 3})
    refuses(fleet, "cohort")
    assert fleet.devices[0].accept(fleet.instruction(roster=fleet.roster[:3])) == 1


def test_another_number_of_clients_to_scale_a_simulated_cohorts_noise_by(tmp_path, unreadable):
    pretends = {
        "unit": "client",
        "noise": "distributed",
        "hypothetical": {"cohort": 100, "population": 1000},
    }
    fleet = Fleet(tmp_path, privacy=pretends)
    fewer = tiny(fleet.config.data.path, privacy=pretends, data={"clients": 3})
    honest = fleet.instruction()
    crafted = fleet.instruction(config=fewer, event=honest.event)
    shares = [each.codec.mechanism.share_variance(4) for each in (crafted, honest)]
    assert shares[0] < 0.6 * shares[1]
    refuses(fleet, "config.data.clients", config=fewer, event=honest.event)


def test_another_dimension_than_the_installed_models(fleet, unreadable):
    refuses(fleet, "dimension", dimension=len(fleet.vector) - 1)
    refuses(fleet, "dimension", dimension=2 * len(fleet.vector))


def test_a_sampled_cohort_of_members_that_were_not_introduced(tmp_path, unreadable):
    sampled = {
        "unit": "client",
        "noise": "distributed",
        "client_rate": 0.9,
        "epsilon_budget": {"outsider": 200.0},
    }
    fleet = Fleet(tmp_path, privacy=sampled)
    device = fleet.devices[0]
    device.meet(b"".join(each.certificate for each in fleet.devices[:3]))
    refuses(fleet, "certified")
    assert device.accept(fleet.instruction(roster=fleet.roster[:3])) == 1


def test_a_cohort_too_large_for_its_threshold(fleet, unreadable):
    """Padded with keys of the server's own until two quorums need not meet."""
    sybils = tuple(SigningKey.generate(RNG).public_bytes for _ in range(3))
    with pytest.raises(ProtocolError, match=r"graph\.quorum|spec\.threshold"):
        fleet.instruction(roster=(*fleet.roster, *sybils)).spec  # noqa: B018


def test_a_roster_of_keys_that_the_server_made(fleet, unreadable):
    """Colluders placed around a victim: only the pinned authority makes members."""
    own, *others = fleet.roster
    sybils = [SigningKey.generate(RNG).public_bytes for _ in range(3)]
    refuses(fleet, "certified", roster=(own, *sybils))
    refuses(fleet, "certified", roster=(own, *others[:2], sybils[0]))


def other_federation(fleet):
    """Certificates of another authority, which the server made, for keys of its own."""
    at = datetime.now(UTC)
    servers_own = make_authority(Randomness.seeded(5), "authority", at=at, valid_days=9)
    keys = [fleet.devices[0].identity, *(SigningKey.generate(RNG) for _ in range(3))]
    pems = [
        certify(servers_own, make_request(key, f"m{i}"), f"m{i}", RNG, at=at, valid_days=9)
        for i, key in enumerate(keys)
    ]
    return servers_own.certificate, pems


def test_members_that_another_authority_certified(fleet):
    """They are not even remembered, so that a roster of them is refused later too."""
    device = fleet.devices[0]
    before = (device.folder / "members.pem").read_bytes()
    _, pems = other_federation(fleet)
    own = device.certificate
    for bundle in (b"".join(pems), own + pems[1], own + own, b"garbage", own + b"garbage"):
        with pytest.raises(ProtocolError, match=r"^certificate\."):
            device.meet(bundle)
        assert (device.folder / "members.pem").read_bytes() == before
    device.meet(b"")  # nobody at all is nobody to follow a roster of
    refuses(fleet, "certified")


def test_a_device_that_never_joined_accepts_nothing(fleet):
    device = fleet.devices[0]
    (device.folder / "authority.pem").unlink()
    declined("authority", device.meet, fleet.certificates)
    declined("authority", device.accept, fleet.instruction())
    (device.folder / "members.pem").unlink()
    declined("certified", device.accept, fleet.instruction())
    (device.folder / "certificate.pem").unlink()
    declined("certificate", lambda: device.certificate)


def test_a_certificate_of_another_key_or_authority(fleet):
    device = fleet.devices[0]
    servers_own, pems = other_federation(fleet)
    declined("certificate", device.join, fleet.devices[1].certificate, fleet.authority)
    with pytest.raises(ProtocolError, match=r"certificate\.issuer"):
        device.join(pems[0], fleet.authority)
    with pytest.raises(ProtocolError, match=r"certificate\.issuer"):
        device.join(device.certificate, servers_own)


def test_training_from_a_model_that_is_not_installed(fleet, unreadable):
    refuses(fleet, "start_model", start_sha256="ab" * 32)


def test_other_weights_than_the_instruction_names(fleet, unreadable):
    instruction, device = fleet.instruction(), fleet.devices[0]
    device.accept(instruction)
    crafted = fleet.vector.clone()
    crafted[0] += 1
    declined("model", device.train, instruction, crafted)
    assert fleet.spent(1) == ["accepted"]


# ---- asking more often than agreed


def test_the_same_instruction_again_even_after_a_restart(fleet, unreadable):
    instruction = fleet.instruction()
    fleet.devices[0].accept(instruction)
    again = Device(fleet.devices[0].folder, fleet.policy)
    for device in (fleet.devices[0], again):
        declined("replay", device.accept, instruction)


def test_training_without_an_accepted_instruction_or_twice_on_one(fleet, monkeypatch):
    monkeypatch.setattr(fedattn.contribution, "train_locally", lambda *_: "trained")
    device, instruction = fleet.devices[0], fleet.instruction()
    declined("accepted", device.train, fleet.instruction(2), fleet.vector)
    device.accept(instruction)
    assert device.train(instruction, fleet.vector) == "trained"
    declined("accepted", device.train, instruction, fleet.vector)
    assert fleet.spent(1) == ["accepted", "spent"]


def one_round_budget(tmp_path):
    config = tiny(tmp_path / "data.jsonl")
    one = spend([round_event(config, 1)], config.privacy.delta).epsilon
    return Fleet(tmp_path, privacy={"epsilon_budget": 1.1 * one})


def test_one_round_beyond_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(fedattn.contribution, "train_locally", lambda *_: "trained")
    fleet = one_round_budget(tmp_path)
    device = fleet.devices[0]
    device.accept(fleet.instruction(1))
    device.train(fleet.instruction(1), fleet.vector)
    declined("budget", device.accept, fleet.instruction(2))
    assert fleet.spent(1) == ["accepted", "spent"]


def test_more_rounds_than_the_device_takes_part_in(tmp_path, monkeypatch):
    monkeypatch.setattr(fedattn.contribution, "train_locally", lambda *_: "trained")
    fleet = Fleet(tmp_path, privacy={"max_participations": 1})
    device = fleet.devices[0]
    for round_ in (1, 2):
        device.accept(fleet.instruction(round_))
    device.train(fleet.instruction(1), fleet.vector)
    declined("participations", device.train, fleet.instruction(2), fleet.vector)
    declined("participations", device.accept, fleet.instruction(3))
    assert fleet.spent(1) == ["accepted", "accepted", "spent"]


def test_two_open_rounds_that_pass_the_budget_together(tmp_path, monkeypatch):
    monkeypatch.setattr(fedattn.contribution, "train_locally", lambda *_: "trained")
    fleet = one_round_budget(tmp_path)
    device = fleet.devices[0]
    for round_ in (1, 2):
        device.accept(fleet.instruction(round_))
    device.train(fleet.instruction(1), fleet.vector)
    declined("budget", device.train, fleet.instruction(2), fleet.vector)
    assert fleet.spent(1) == ["accepted", "accepted", "spent"]


# ---- the device's own ledger


@pytest.mark.parametrize("damage", ["emptied", "other line", "kind", "cost", "removed", "moved"])
def test_a_spoiled_ledger_does_not_start_anew(fleet, unreadable, damage):
    device, path = fleet.devices[0], fleet.folder / "device-1" / "spend.jsonl"
    for round_ in (1, 2):
        device.accept(fleet.instruction(round_))
    opening, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        {
            "emptied": b"\n",
            "other line": opening + b"5\n" + second,
            "kind": opening + first.replace(b"accepted", b"forgotten") + second,
            "cost": opening + first.replace(b'"noise_multiplier":1.0', b'"noise_multiplier":9.0'),
            "removed": opening + second,
            "moved": opening + second + first,
        }[damage]
    )
    before = path.read_bytes()
    declined("spend_ledger", device.accept, fleet.instruction(3))
    assert path.read_bytes() == before


def test_a_full_disk_is_no_way_around_the_ledger(fleet, unreadable, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    device, instruction = fleet.devices[0], fleet.instruction()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        declined("spend_ledger", device.accept, instruction)
    monkeypatch.setattr(fedattn.contribution, "train_locally", lambda *_: pytest.fail("trained"))
    device.accept(fleet.instruction(2))
    monkeypatch.setattr(os, "fsync", full)
    declined("spend_ledger", device.train, fleet.instruction(2), fleet.vector)
    assert fleet.spent(1) == ["accepted"]


# ---- one document, one hash


def test_a_document_that_reads_in_two_ways(fleet):
    document = fleet.instruction().document
    raw = json.loads(document)
    for other in (
        json.dumps(raw).encode(),  # spaces
        json.dumps(raw, separators=(",", ":")).encode()[:-1] + b',"round":2}',  # two rounds
        json.dumps({**raw, "extra": 1}, sort_keys=True, separators=(",", ":")).encode(),
        json.dumps({**raw, "round": "1"}, sort_keys=True, separators=(",", ":")).encode(),
    ):
        with pytest.raises(ProtocolError, match=r"instruction\.(canonical|format)"):
            Instruction.parse(other)
    with pytest.raises(ProtocolError, match=r"instruction\.canonical"):
        Instruction.parse(json.dumps(raw).encode())


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b'{"format":"fedattn-instruction/5"}'])
def test_a_document_that_is_no_instruction(document):
    with pytest.raises(ProtocolError, match=r"instruction\.format"):
        Instruction.parse(document)
    raw = {"format": "fedattn-instruction/4"}
    with pytest.raises(ProtocolError, match=r"instruction\.format"):
        Instruction.parse(json.dumps(raw).encode())


def test_a_document_of_another_format_version(fleet):
    newer = fleet.instruction().document.replace(b"fedattn-instruction/4", b"fedattn-instruction/5")
    with pytest.raises(ProtocolError, match=r"instruction\.format"):
        Instruction.parse(newer)
