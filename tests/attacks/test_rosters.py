"""Who is in a round, and how many must agree: what a server would choose for itself."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations

import pytest

from fedattn.certificates import certify, load_roster, make_authority, make_request
from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg import client
from fedattn.secagg.wire import Stage
from fedattn.signing import SigningKey
from tests.attacks.adversary import (
    RNG,
    adverts,
    confirmations,
    key_list,
    mail,
    mailbox,
    refuses,
    signatures,
    step,
    survivor_list,
)
from tests.secagg.harness import Round, identities, make_spec

NOW = datetime(2026, 11, 22, tzinfo=UTC)


# ---- the round that the instruction sets


@pytest.mark.parametrize(
    ("what", "change", "check"),
    [
        ("one client many times", {"roster": (b"k" * 32, b"k" * 32, b"l" * 32)}, "spec.roster"),
        ("nobody", {"roster": ()}, "spec.roster"),
        ("a shortened key", {"roster": (b"k" * 31, b"l" * 32, b"m" * 32)}, "spec.roster"),
        ("a threshold of none", {"threshold": 0}, "spec.threshold"),
        ("a threshold of less than none", {"threshold": -1, "max_colluding": 0}, "spec.threshold"),
        ("a threshold that two disjoint halves reach", {"threshold": 2}, "spec.threshold"),
        ("a threshold nobody reaches", {"threshold": 5}, "spec.threshold"),
        ("more colluders than quorums survive", {"max_colluding": 2}, "spec.threshold"),
        ("fewer colluders than none", {"max_colluding": -3}, "spec.max_colluding"),
        ("a hash that binds less", {"instruction_hash": b"short"}, "spec.instruction_hash"),
        ("a round before the first", {"round": -1}, "spec.round"),
        ("a vector of no length", {"dimension": 0}, "spec.dimension"),
        ("a vector too long to count", {"dimension": 1 << 32}, "spec.dimension"),
        ("a modulus of one bit", {"modulus_bits": 1}, "spec.modulus_bits"),
        ("a modulus wider than a word", {"modulus_bits": 33}, "spec.modulus_bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_instruction_that_sets(what, change, check):
    refuses(check, replace, make_spec(4, 3), **change)


@pytest.mark.parametrize("index", [-1, 0, 6])
def test_talking_a_client_into_a_place_outside_the_roster(finished, index):
    refuses("roster", client.advertise, finished.spec, index, finished.keys[1], RNG)


def test_talking_a_client_into_another_members_place(finished):
    refuses("identity", client.advertise, finished.spec, 2, finished.keys[1], RNG)
    without = replace(finished.spec, roster=tuple(k.public_bytes for k in identities(5, 9)))
    refuses("identity", client.advertise, without, 1, finished.keys[1], RNG)


@pytest.mark.parametrize("c", [0, 1, 2, 3])
def test_surrounding_a_victim_with_colluders_alone(c):
    """Victim and c colluders are below every threshold that the spec allows."""
    n = c + 3
    t = (n + c) // 2 + 1
    assert t > c + 1
    refuses("spec.threshold", make_spec, n, c + 1, c)
    r = Round(make_spec(n, t, c)).advertise()
    alone = adverts(r)[: c + 1]
    refuses("keys.threshold", step, r, Stage.SHARE, 1, key_list(r, alone))


# ---- the sets that the server shows at each stage


def shown(r, stage, members):
    """The server's message at `stage` to member 1 with this set of members."""
    if stage == Stage.SHARE:
        return key_list(r, [adverts(r)[i - 1] for i in members])
    if stage == Stage.UPLOAD:
        _, packets = mail(r, 1)
        return mailbox(r, 1, members, [(i, packets.get(i, packets[2])) for i in members if i != 1])
    if stage == Stage.CONFIRM:
        return survivor_list(r, members)
    listed = r.server.survivor_indices
    signed = signatures(r, range(1, 6), listed)
    return confirmations(r, listed, [(i, signed[i]) for i in members])


SETS = [
    (Stage.SHARE, "keys"),
    (Stage.UPLOAD, "mailbox"),
    (Stage.CONFIRM, "survivors"),
    (Stage.UNMASK, "confirmations"),
]


@pytest.mark.parametrize(("stage", "where"), SETS, ids=[where for _, where in SETS])
def test_showing_a_set(finished, stage, where):
    r = finished

    def refused(check, members):
        refuses(f"{where}.{check}", step, r, stage, 1, shown(r, stage, members))

    step(r, stage, 1, shown(r, stage, [1, 2, 3, 4]))  # the honest one passes
    refused("distinct", [1, 2, 2, 2])  # one client many times
    refused("distinct", [1, 1, 2, 3, 4])
    refused("distinct", [1, 3, 2, 4])  # one set has one form, or equal sets have two hashes
    for few in (subset for size in (1, 2, 3) for subset in combinations(range(1, 5), size)):
        refused("threshold", few)  # with or without itself
    if stage != Stage.UNMASK:
        refused("self", [2, 3, 4, 5])


def test_showing_confirmations_without_the_clients_own():
    """More survivors than t: t others confirm, and the client's own is left out."""
    r = Round(make_spec(5, 3))
    r.run()
    refuses("confirmations.self", step, r, Stage.UNMASK, 1, shown(r, Stage.UNMASK, [2, 3, 4]))


def test_inventing_a_member_at_a_later_stage(finished):
    """Who did not advertise does not share, who did not share does not survive or confirm."""
    r = Round(make_spec(6, 4), gone={Stage.ADVERTISE: {6}, Stage.SHARE: {5}})
    r.run()
    sharers, packets = mail(r, 1)
    invented = mailbox(r, 1, [*sharers, 6], {**packets, 6: packets[2]})
    refuses("mailbox.subset", step, r, Stage.UPLOAD, 1, invented)
    refuses("survivors.subset", step, r, Stage.CONFIRM, 1, survivor_list(r, [1, 2, 3, 4, 5]))
    refuses("survivors.subset", step, r, Stage.CONFIRM, 1, survivor_list(r, [1, 2, 3, 4, 9]))
    # in the shared round member 5 shared and dropped out: its signature confirms nothing
    with_dropout = shown(finished, Stage.UNMASK, [1, 2, 3, 5])
    refuses("confirmations.subset", step, finished, Stage.UNMASK, 1, with_dropout)


# ---- who may be in a roster at all: the authority's word, not the server's


def certified(authority, keys_, seed=0):
    stream = Randomness.seeded(seed, "serials")
    return [
        certify(authority, make_request(key, name), name, stream, at=NOW, valid_days=30)
        for name, key in keys_.items()
    ]


def test_filling_the_roster_with_keys_that_the_server_made():
    authority = make_authority(Randomness.seeded(1), "authority", at=NOW, valid_days=365)
    servers_own = make_authority(Randomness.seeded(2), "authority", at=NOW, valid_days=365)
    victim, sybils = identities(1)[0], dict(zip("xyz", identities(3, 8), strict=True))
    honest = certified(authority, {"victim": victim})
    roster = [*honest, *certified(servers_own, sybils)]
    refuses("certificate.issuer", load_roster, roster, authority.certificate, at=NOW)
    several = [*certified(authority, {"victim2": victim}, 5), *honest]
    refuses("certificate.repeated", load_roster, several, authority.certificate, at=NOW)
    whole = [*honest, *certified(authority, sybils, 6)]
    assert load_roster(whole, authority.certificate, at=NOW)[0] == victim.public_bytes


def test_a_member_that_certifies_others():
    authority = make_authority(Randomness.seeded(1), "authority", at=NOW, valid_days=365)
    member = SigningKey.generate(Randomness.seeded(3))
    (own,) = certified(authority, {"member": member})
    posing = replace(authority, key=member, certificate=own)
    with pytest.raises(ProtocolError, match=r"certificate\.authority"):
        certified(posing, {"sybil": SigningKey.generate(Randomness.seeded(4))})
