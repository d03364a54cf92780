"""Every check of a client's first stages, each with a message that passes all others."""

from dataclasses import replace

import pytest

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg import client, keys, messages
from fedattn.secagg.wire import EVERYONE, Stage, server_message, signed_message
from fedattn.signing import SigningKey
from tests.secagg.harness import Round, make_spec, sha

RNG = Randomness.seeded(99)


def refuses(check, step, *args):
    with pytest.raises(ProtocolError) as caught:
        step(*args)
    assert caught.value.check == check, str(caught.value)


# ---- share: the key list


def adverts(r):
    return [r.sent[Stage.ADVERTISE, i] for i in r.spec.members]


def try_share(r, relayed, check, state=None):
    message = server_message(
        r.spec, Stage.SHARE, EVERYONE, messages.KeyList(tuple(relayed)).encode()
    )
    state = state or r.state(Stage.SHARE, 1)
    if check is None:
        return client.share(state, r.keys[1], message, RNG)
    return refuses(check, client.share, state, r.keys[1], message, RNG)


def advert(r, i, *, mask=None, transport=None, neighbours=(), identity=None, spec=None, index=None):
    old = messages.Advertisement.decode(r.sent[Stage.ADVERTISE, i][39:-64])
    new = messages.Advertisement(
        mask or old.mask_key, transport or old.transport_key, old.seed_commitment, neighbours
    )
    who = identity or r.keys[i]
    return signed_message(spec or r.spec, who, Stage.ADVERTISE, index or i, new.encode())


def test_the_honest_key_list_passes_with_t_members(r):
    try_share(r, adverts(r), None)
    try_share(r, adverts(r)[:4], None)


def test_share_refuses_fewer_than_t(r):
    try_share(r, adverts(r)[:3], "keys.threshold")


def test_share_refuses_one_member_many_times(r):
    first, second, third, fourth, _ = adverts(r)
    try_share(r, [first, second, second, third, fourth], "keys.distinct")
    try_share(r, [second, first, third, fourth], "keys.distinct")


def test_share_refuses_a_list_without_itself(r):
    try_share(r, adverts(r)[1:], "keys.self")


def test_share_refuses_other_bytes_under_its_own_name(r):
    _, again = client.advertise(r.spec, 1, r.keys[1], RNG)
    try_share(r, [again, *adverts(r)[1:]], "keys.own")


def test_share_refuses_a_member_outside_the_roster(r):
    stranger = SigningKey.generate(RNG)
    six = advert(r, 5, identity=stranger, index=6)
    try_share(r, [*adverts(r)[:4], six], "keys.subset")


def test_share_refuses_a_forged_signature(r):
    forged = advert(r, 3, identity=SigningKey.generate(RNG))
    unsigned = adverts(r)[2][:-64] + bytes(64)
    swapped = advert(r, 3, identity=r.keys[2])  # signed by another member
    for bad in (forged, unsigned, swapped):
        relayed = adverts(r)
        relayed[2] = bad
        try_share(r, relayed, "message.signature")


def test_share_refuses_an_advertisement_of_another_round_or_stage(r):
    other = replace(r.spec, instruction_hash=sha("other model, clip, noise or seed"))
    relayed = adverts(r)
    relayed[2] = advert(r, 3, spec=other)
    try_share(r, relayed, "message.instruction")
    relayed[2] = r.sent[Stage.SHARE, 3]
    try_share(r, relayed, "message.stage")
    relayed[2] = server_message(r.spec, Stage.ADVERTISE, 3, adverts(r)[2][39:])
    try_share(r, relayed, "message.role")


@pytest.mark.parametrize("purpose", ["mask", "transport"])
def test_share_refuses_a_repeated_key(r, purpose):
    victim = messages.Advertisement.decode(adverts(r)[1][39:-64])
    for key in (victim.mask_key, victim.transport_key):
        relayed = adverts(r)
        relayed[2] = advert(r, 3, **{purpose: key})
        try_share(r, relayed, "keys.repeated")


@pytest.mark.parametrize(
    "point",
    [n.to_bytes(32, "little") for n in (0, 1, 2**255 - 20, 2**255 - 19 + 9, 2**256 - 1)],
)
@pytest.mark.parametrize("purpose", ["mask", "transport"])
def test_share_refuses_a_point_of_low_order_or_another_encoding(r, purpose, point):
    relayed = adverts(r)
    relayed[2] = advert(r, 3, **{purpose: point})
    try_share(r, relayed, "keys.point")


def test_share_refuses_neighbours_in_a_complete_graph(r):
    relayed = adverts(r)
    relayed[2] = advert(r, 3, neighbours=(1,))
    try_share(r, relayed, "keys.neighbours")


# ---- upload: the mailbox


def try_upload(r, change, check, *, to=1):
    body = messages.Mailbox.decode(r.mailboxes[1][39:])
    sharers, packets = change(list(body.sharers), list(body.packets))
    body = messages.Mailbox(tuple(sharers), tuple(packets)).encode()
    message = server_message(r.spec, Stage.UPLOAD, to, body)
    state, vector = r.state(Stage.UPLOAD, 1), r.vectors[1]
    if check is None:
        return client.upload(state, r.keys[1], message, vector)
    return refuses(check, client.upload, state, r.keys[1], message, vector)


def test_the_honest_mailbox_passes_with_t_sharers(r):
    try_upload(r, lambda s, p: (s, p), None)
    try_upload(r, lambda s, p: (s[:4], p[:3]), None)


def test_upload_refuses_fewer_than_t(r):
    try_upload(r, lambda s, p: (s[:3], p[:2]), "mailbox.threshold")


def test_upload_refuses_one_sharer_many_times(r):
    try_upload(r, lambda s, p: ([1, 2, 2, 3, 4], [p[0], *p[:3]]), "mailbox.distinct")


def test_upload_refuses_sharers_without_itself(r):
    try_upload(r, lambda s, p: (s[1:], p), "mailbox.self")


def test_upload_refuses_a_sharer_that_did_not_advertise():
    r = Round(make_spec(5, 4), gone={Stage.ADVERTISE: {5}})
    r.run()
    try_upload(r, lambda s, p: ([*s, 5], [*p, (5, p[0][1])]), "mailbox.subset")


def test_upload_refuses_packets_that_are_not_the_sharers(r):
    try_upload(r, lambda s, p: (s, p[:-1]), "mailbox.packets")
    try_upload(r, lambda s, p: (s[:4], p), "mailbox.packets")
    try_upload(r, lambda s, p: (s, [p[1], p[0], *p[2:]]), "mailbox.packets")
    try_upload(r, lambda s, p: (s, [p[0], p[0], *p[2:]]), "mailbox.packets")


def test_upload_refuses_another_members_mailbox(r):
    try_upload(r, lambda s, p: (s, p), "message.index", to=2)


def spoil(packet):
    return (packet[0], packet[1][:-1] + bytes([packet[1][-1] ^ 1]))


def test_upload_keeps_out_a_spoiled_packet_and_refuses_fewer_than_t_good_ones(r):
    state, _ = try_upload(r, lambda s, p: (s, [spoil(p[0]), *p[1:]]), None)
    assert [held.owner for held in state.held] == [1, 3, 4, 5]
    assert state.sharers == (1, 2, 3, 4, 5)
    try_upload(r, lambda s, p: (s, [spoil(p[0]), spoil(p[1]), *p[2:]]), "mailbox.proven")


def test_upload_keeps_out_a_packet_meant_for_another_member_or_swapped(r):
    def swap(sharers, packets):
        return sharers, [(2, packets[1][1]), *packets[1:]]

    def redirect(sharers, packets):
        return sharers, [
            (2, messages.Mailbox.decode(r.mailboxes[3][39:]).packets[1][1]),
            *packets[1:],
        ]

    for change in (swap, redirect):
        state, _ = try_upload(r, change, None)
        assert [held.owner for held in state.held] == [1, 3, 4, 5]


def test_a_packet_reflected_to_its_sender_does_not_open(r):
    mine = dict(messages.Packets.decode(r.sent[Stage.SHARE, 1][39:-64]).packets)[2]
    state, _ = try_upload(r, lambda s, p: (s, [(2, mine), *p[1:]]), None)
    assert 2 not in [held.owner for held in state.held]


def test_a_sealed_packet_that_is_not_two_field_elements_is_kept_out(r):
    me, peer = r.state(Stage.UPLOAD, 1), r.state(Stage.UPLOAD, 2)
    private, public = keys.load(peer.transport_secret), keys.public_bytes(me.transport_secret)
    bad = keys.seal(private, public, r.spec.instruction_hash, 2, 1, b"\xff" * 66, RNG)
    state, _ = try_upload(r, lambda s, p: (s, [(2, bad), *p[1:]]), None)
    assert 2 not in [held.owner for held in state.held]


def test_a_dropouts_mask_key_opens_no_packet_sent_to_it(r):
    state = r.state(Stage.UPLOAD, 5)
    reconstructed = keys.load(state.mask_secret)
    hash_ = r.spec.instruction_hash
    for sender, packet in messages.Mailbox.decode(r.mailboxes[5][39:]).packets:
        peer = next(p for p in state.peers if p.index == sender)
        for key in (peer.mask_key, peer.transport_key):
            assert keys.unseal(reconstructed, key, hash_, sender, 5, packet) is None
