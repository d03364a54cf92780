"""Encrypted shares: swapped, reflected, altered, invented, or opened with the wrong key."""

from itertools import combinations

import pytest

from fedattn.secagg import keys
from fedattn.secagg.messages import Kind
from fedattn.secagg.shamir import combine
from fedattn.secagg.wire import Stage
from tests.attacks.adversary import (
    RNG,
    mail,
    mailbox,
    packets_of,
    refuses,
    revealed,
    step,
)
from tests.secagg.harness import Round, make_spec


def kept(r, packets, sharers=None):
    """Whose shares member 1 holds after a mailbox with these packets."""
    message = mailbox(r, 1, sharers or mail(r, 1)[0], packets)
    state, _ = step(r, Stage.UPLOAD, 1, message)
    return [held.owner for held in state.held]


def test_swapping_ciphertexts_between_peers(finished):
    _, packets = mail(finished, 1)
    for a, b in combinations((2, 3, 4, 5), 2):
        swapped = {**packets, a: packets[b]}
        assert kept(finished, swapped) == sorted({1, 2, 3, 4, 5} - {a})
    both = {**packets, 2: packets[3], 3: packets[2]}
    refuses("mailbox.proven", kept, finished, both)


def test_delivering_a_packet_that_was_meant_for_another(finished):
    _, packets = mail(finished, 1)
    for recipient in (3, 4, 5):
        redirected = {**packets, 2: packets_of(finished, 2)[recipient]}
        assert kept(finished, redirected) == [1, 3, 4, 5]


def test_reflecting_a_clients_own_packets_to_it(finished):
    """Both directions of a pair have one Diffie-Hellman secret, but not one key."""
    own = packets_of(finished, 1)
    _, packets = mail(finished, 1)
    for peer in (2, 3, 4, 5):
        assert peer not in kept(finished, {**packets, peer: own[peer]})
    refuses("mailbox.proven", kept, finished, own)


@pytest.mark.parametrize("place", [0, 11, 12, 44, 45, 77, 78, 93])
def test_altering_a_packet_in_nonce_shares_or_tag(finished, place):
    _, packets = mail(finished, 1)
    altered = bytearray(packets[2])
    altered[place] ^= 1
    assert kept(finished, {**packets, 2: bytes(altered)}) == [1, 3, 4, 5]


def test_replaying_an_old_rounds_packets(finished):
    old = Round(make_spec(5, 4, 1, instruction=bytes(32)), gone={Stage.UPLOAD: {5}})
    old.run()  # the same randomness, so the same keys: only the instruction differs
    assert old.state(Stage.UPLOAD, 1).transport_secret
    refuses("mailbox.proven", kept, finished, mail(old, 1)[1])


def test_inventing_sharers_that_sent_nothing(finished):
    """Without t packets that open, a victim would mask against keys of nobody."""
    _, packets = mail(finished, 1)
    for real in combinations((2, 3, 4, 5), 2):
        invented = {i: packets[i] if i in real else RNG.bytes(94) for i in packets}
        refuses("mailbox.proven", kept, finished, invented)
    for real in combinations((2, 3, 4, 5), 3):
        invented = {i: packets[i] if i in real else RNG.bytes(94) for i in packets}
        assert kept(finished, invented) == [1, *real]


def test_leaving_packets_out_adding_some_or_changing_their_order(finished):
    r = finished
    sharers, packets = mail(r, 1)
    pairs = list(packets.items())
    for message in (
        mailbox(r, 1, sharers, pairs[:-1]),
        mailbox(r, 1, sharers[:4], pairs),
        mailbox(r, 1, sharers, pairs[::-1]),
        mailbox(r, 1, sharers, [pairs[0], pairs[0], *pairs[2:]]),
        mailbox(r, 1, sharers, [(1, pairs[0][1]), *pairs]),
        mailbox(r, 1, sharers, [*pairs, pairs[-1]]),
    ):
        refuses("mailbox.packets", step, r, Stage.UPLOAD, 1, message)


def test_delivering_another_members_mailbox(finished):
    refuses("message.index", step, finished, Stage.UPLOAD, 1, finished.mailboxes[2])


def test_a_sender_that_seals_what_is_no_share(finished):
    me, peer = finished.state(Stage.UPLOAD, 1), finished.state(Stage.UPLOAD, 2)
    private, public = keys.load(peer.transport_secret), keys.public_bytes(me.transport_secret)
    for plain in (b"\xff" * 66, b"", bytes(65), bytes(67)):
        sealed = keys.seal(private, public, finished.spec.instruction_hash, 2, 1, plain, RNG)
        sealed = sealed.ljust(94, b"\0")[:94]
        _, packets = mail(finished, 1)
        assert 2 not in kept(finished, {**packets, 2: sealed})


def test_decrypting_a_dropouts_mailbox_with_its_reconstructed_mask_key(finished):
    """The transport key is another one: with it, both secrets of everybody would be open."""
    r, dropout = finished, 5
    shares = {}
    for i in r.server.survivor_indices:
        for owner, kind, value in revealed(r, r.sent[Stage.UNMASK, i], i):
            if (owner, kind) == (dropout, Kind.MASK_KEY):
                shares[i] = value
    secret = combine(dict(list(shares.items())[: r.spec.threshold]))
    before = r.state(Stage.UPLOAD, dropout)
    assert secret == before.mask_secret != before.transport_secret
    private, hash_ = keys.load(secret), r.spec.instruction_hash
    honest = keys.load(before.transport_secret)
    _, inbox = mail(r, dropout)
    assert len(inbox) == 4
    for peer in before.peers:
        for key in (peer.mask_key, peer.transport_key):
            outgoing = packets_of(r, dropout)[peer.index]
            assert keys.unseal(private, key, hash_, peer.index, dropout, inbox[peer.index]) is None
            assert keys.unseal(private, key, hash_, dropout, peer.index, outgoing) is None
        opens = keys.unseal(
            honest, peer.transport_key, hash_, peer.index, dropout, inbox[peer.index]
        )
        assert opens is not None  # so the attempt above failed for want of the key alone
