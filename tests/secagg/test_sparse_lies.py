"""A server that lies about the graph: hides members or edges, invents them, tells two stories."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.errors import ProtocolError
from fedattn.secagg import client, keys, messages
from fedattn.secagg.confirmation import sign_notice
from fedattn.secagg.messages import Notice
from fedattn.secagg.prg import add_masks, pairwise_sign
from fedattn.secagg.wire import Stage, server_message, signed_message
from tests.secagg.harness import Round, Trusting, make_spec, sha
from tests.secagg.test_client_checks import RNG, refuses
from tests.secagg.test_sparse import SPEC, drawn_by


@pytest.fixture(scope="module")
def r():
    done = Round(SPEC, gone={Stage.UPLOAD: {5}}, tolerant=True)
    done.run()
    assert not done.refused
    return done


def body_of(message):
    return message[39:]


def narrow(r, victim, hidden, message):
    body = messages.Mailbox.decode(body_of(message))
    return server_message(
        r.spec,
        Stage.UPLOAD,
        victim,
        messages.Mailbox(
            tuple(i for i in body.sharers if i not in hidden),
            tuple(packet for packet in body.packets if packet[0] not in hidden),
        ).encode(),
    )


# ---- share


def try_share(r, victim, senders, check, extra=()):
    relayed = [r.sent[Stage.ADVERTISE, i] for i in senders] + list(extra)
    body = messages.KeyList(tuple(relayed)).encode()
    message = server_message(r.spec, Stage.SHARE, victim, body)
    state = r.state(Stage.SHARE, victim)
    if check is None:
        return client.share(state, r.keys[victim], message, RNG)
    return refuses(check, client.share, state, r.keys[victim], message, RNG)


def test_hiding_drawn_members_stops_the_client_below_t(r):
    drawn, t = drawn_by(r, 1), r.spec.share_threshold
    state, _ = try_share(r, 1, sorted((1, *drawn[:t])), None)
    assert [peer.index for peer in state.peers] == list(drawn[:t])
    try_share(r, 1, sorted((1, *drawn[: t - 1])), "keys.drawn")
    everyone_else = [i for i in r.spec.members if i not in drawn[t - 1 :]]
    near = [i for i in everyone_else if i in drawn or 1 in drawn_by(r, i) or i == 1]
    try_share(r, 1, near, "keys.drawn")  # in-neighbours do not make up for it


def test_an_invented_neighbour_is_refused(r):
    near = {1, *drawn_by(r, 1), *(i for i in r.spec.members[1:] if 1 in drawn_by(r, i))}
    stranger = next(i for i in r.spec.members if i not in near)
    try_share(r, 1, sorted(near), None)
    try_share(r, 1, sorted((stranger, *near)), "keys.edge")


@pytest.mark.parametrize(
    "drawn", [(), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 5), (2, 1, 3, 4, 5, 6), (1, 2, 3, 4, 5, 15)]
)
def test_an_advertisement_of_other_draws_is_refused(r, drawn):
    old = messages.Advertisement.decode(r.sent[Stage.ADVERTISE, 9][39:-64])
    for wrong in (drawn, (1, 2, 3, 4, 5, 9)):  # itself
        body = replace(old, out_neighbours=wrong).encode()
        message = signed_message(r.spec, r.keys[9], Stage.ADVERTISE, 9, body)
        fresh = Round(SPEC)
        refuses("keys.neighbours", fresh.server.advertised, 9, message)


def test_another_members_key_list_is_refused(r):
    state = r.state(Stage.SHARE, 1)
    refuses("message.index", client.share, state, r.keys[1], r.key_lists[2], RNG)


def test_shares_go_to_the_drawn_alone(r):
    packets = messages.Packets.decode(r.sent[Stage.SHARE, 1][39:-64]).packets
    assert [to for to, _ in packets] == list(drawn_by(r, 1))
    assert r.state(Stage.UPLOAD, 1).held == ()


# ---- upload


def try_upload(r, victim, keep, check):
    body = messages.Mailbox.decode(body_of(r.mailboxes[victim]))
    sharers = tuple(i for i in body.sharers if keep(i) or i == victim)
    packets = tuple(packet for packet in body.packets if keep(packet[0]))
    message = server_message(
        r.spec, Stage.UPLOAD, victim, messages.Mailbox(sharers, packets).encode()
    )
    state, vector = r.state(Stage.UPLOAD, victim), r.vectors[victim]
    if check is None:
        return client.upload(state, r.keys[victim], message, vector)
    return refuses(check, client.upload, state, r.keys[victim], message, vector)


def test_hiding_sharers_stops_the_client_below_t(r):
    drawn, t = drawn_by(r, 1), r.spec.share_threshold
    state, message = try_upload(r, 1, lambda i: i not in drawn[t:], None)
    assert set(state.sharers) & set(drawn) == set(drawn[:t])
    notice = messages.MaskedVector.decode(message[39:-64]).notice
    assert notice.absent == drawn[t:]  # and it says so, signed
    try_upload(r, 1, lambda i: i not in drawn[t - 1 :], "mailbox.drawn")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_is_hidden_or_invented_a_vector_has_masks_with_t_own_draws(r, data):
    victim = data.draw(st.integers(1, 14).filter(lambda i: i != 5))
    drawn, t = drawn_by(r, victim), r.spec.share_threshold
    shown = data.draw(st.sets(st.sampled_from([*r.spec.members]), min_size=5))
    try:
        state, _ = try_share(r, victim, sorted({victim, *shown}), None)
        private = keys.load(state.transport_secret)
        senders = [peer for peer in state.peers if peer.drew_us]
        packets = tuple(
            packet
            for packet in messages.Mailbox.decode(body_of(r.mailboxes[victim])).packets
            if packet[0] in {peer.index for peer in senders}
        )
        assert private
        lost = data.draw(st.sets(st.sampled_from([*r.spec.members])))
        sharers = tuple(sorted({victim} | ({peer.index for peer in state.peers} - lost)))
        mailbox = messages.Mailbox(sharers, tuple(p for p in packets if p[0] in sharers))
        message = server_message(r.spec, Stage.UPLOAD, victim, mailbox.encode())
        after, upload = client.upload(state, r.keys[victim], message, r.vectors[victim])
    except ProtocolError:
        return
    own = set(drawn) & set(after.sharers)
    assert len(own) >= t
    # the masks of exactly these, taken off, leave the vector
    words = messages.MaskedVector.decode(upload[39:-64]).words.copy()
    hash_, private = r.spec.instruction_hash, keys.load(state.mask_secret)
    masks = [(keys.self_mask_key(hash_, victim, state.self_seed), -1)]
    for peer in state.peers:
        if peer.index in after.sharers:
            key = keys.pairwise_mask_key(private, peer.mask_key, hash_, victim, peer.index)
            masks.append((key, -pairwise_sign(victim, peer.index)))
    add_masks(words, masks)
    assert words.tolist() == r.vectors[victim].tolist()


def test_a_mailbox_without_a_packet_of_who_drew_us_is_refused(r):
    body = messages.Mailbox.decode(body_of(r.mailboxes[1]))
    for packets in (body.packets[1:], (*body.packets[:-1], (99, body.packets[-1][1]))):
        message = server_message(
            r.spec, Stage.UPLOAD, 1, messages.Mailbox(body.sharers, packets).encode()
        )
        state = r.state(Stage.UPLOAD, 1)
        refuses("mailbox.packets", client.upload, state, r.keys[1], message, r.vectors[1])


def test_a_hidden_edge_costs_the_sum_and_opens_nothing():
    r = Round(replace(SPEC, dimension=3)).until(Stage.SHARE)
    pairs = [(i, j) for i in r.spec.members for j in drawn_by(r, i) if i not in drawn_by(r, j)]
    drawer, victim = pairs[0]
    key_list, mailbox = r.server.key_list, r.server.mailbox
    near = [i for i in (victim, *r.server._adverts.neighbours(victim)) if i != drawer]
    relayed = messages.KeyList(tuple(r.sent[Stage.ADVERTISE, i] for i in sorted(near))).encode()
    narrowed = server_message(r.spec, Stage.SHARE, victim, relayed)
    r.server.key_list = lambda i: narrowed if key_list(i) and i == victim else key_list(i)
    r.server.mailbox = lambda i: (
        narrow(r, victim, [drawer], mailbox(i)) if i == victim else mailbox(i)
    )
    r.share().upload().confirm().unmask()
    assert drawer not in r.state(Stage.CONFIRM, victim).sharers
    total = r.server.total()
    sums = np.zeros((1, 3), np.uint32)
    for vector in r.vectors.values():
        sums = np.concatenate((sums, sums + vector))
    assert len(sums) == 2**14
    assert not (sums == total).all(axis=1).any()  # of no set of members at all


# ---- confirm


def try_confirm(r, state, listed, check):
    body = messages.SurvivorList(tuple(listed)).encode()
    message = server_message(r.spec, Stage.CONFIRM, 0, body)
    if check is None:
        return client.confirm(state, r.keys[state.index], message, sha("statement"))
    return refuses(check, client.confirm, state, r.keys[state.index], message, sha("statement"))


def test_confirm_checks_the_global_survivor_list(r):
    state, t = r.state(Stage.CONFIRM, 1), r.spec.share_threshold
    everyone = list(r.spec.members)
    try_confirm(r, state, everyone, None)
    try_confirm(
        r,
        state,
        everyone[:9],
        None if len({*state.drawn} & {*everyone[:9]}) >= t else "survivors.drawn",
    )
    try_confirm(r, state, everyone[:8], "survivors.threshold")
    try_confirm(r, state, everyone[1:], "survivors.self")
    try_confirm(r, state, [*everyone, 15], "survivors.subset")
    lost = state.drawn[t - 1 :]
    try_confirm(r, state, [i for i in everyone if i not in lost], "survivors.drawn")


def test_a_drawn_member_that_was_hidden_cannot_survive(r):
    hidden = drawn_by(r, 1)[0]
    state, _ = try_upload(r, 1, lambda i: i != hidden, None)
    everyone = list(r.spec.members)
    try_confirm(r, state, everyone, "survivors.hidden")
    try_confirm(r, state, [i for i in everyone if i != hidden], None)


# ---- unmask


def try_unmask(r, check, change, to=1):
    body = messages.ConfirmationList.decode(body_of(r.confirmation_lists[to]))
    body = replace(body, notices=tuple(change(list(body.notices))))
    message = server_message(r.spec, Stage.UNMASK, to, body.encode())
    state = r.state(Stage.UNMASK, to)
    if check is None:
        return client.unmask(state, r.keys[to], message)
    return refuses(check, client.unmask, state, r.keys[to], message)


def test_unmask_wants_a_notice_of_every_survivor_whose_shares_it_holds(r):
    def resign(notice, absent, key=None):
        key = key or r.keys[notice.owner]
        signature = sign_notice(key, r.spec.instruction_hash, notice.owner, absent)
        return Notice(notice.owner, absent, signature)

    try_unmask(r, None, lambda n: n)
    try_unmask(r, "notices.missing", lambda n: n[1:])
    try_unmask(r, "notices.signature", lambda n: [replace(n[0], signature=bytes(64)), *n[1:]])
    try_unmask(r, "notices.signature", lambda n: [replace(n[0], absent=(3,)), *n[1:]])
    try_unmask(r, "notices.signature", lambda n: [resign(n[0], (), r.keys[14]), *n[1:]])
    try_unmask(r, "notices.signature", lambda n: [replace(n[1], owner=n[0].owner), *n[1:]])
    try_unmask(r, "notices.absent", lambda n: [resign(n[0], (1,)), *n[1:]])


def test_a_victim_told_that_its_holders_are_lost_is_not_opened_by_them():
    # Members 1..n are honest but for the server. It shows the victim only t of its draws as
    # sharers, later calls those t dropouts, and asks the k - t others for the victim's seed.
    r = Round(make_spec(14, 8, 0, degree=6, share_threshold=3), tolerant=True).until(Stage.UPLOAD)
    victim = 1
    drawn = drawn_by(r, victim)
    shown, hidden = drawn[:3], drawn[3:]
    honest_mailbox = r.server.mailbox
    r.server.mailbox = lambda i: (
        narrow(r, victim, hidden, honest_mailbox(i)) if i == victim else honest_mailbox(i)
    )
    # a server without the check of notices
    r.server._uploads = Trusting(r.spec)
    r.gone = {Stage.UPLOAD: set(shown)}
    r.upload().confirm()
    assert r.refused[victim] == "survivors.hidden"
    assert victim in r.server.survivor_indices
    r.unmask()
    for holder in hidden:
        assert r.refused[holder] == "notices.absent"


def test_a_quorum_of_confirmations_is_relayed_the_recipients_among_them(r):
    for i, message in r.confirmation_lists.items():
        signers = [s for s, _ in messages.ConfirmationList.decode(body_of(message)).signatures]
        assert len(signers) == r.spec.threshold
        assert i in signers
