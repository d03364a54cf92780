"""A bad message leaves its sender out and the server as it was."""

from dataclasses import replace

import numpy as np
import pytest

from fedattn.errors import ProtocolError
from fedattn.secagg import client, messages
from fedattn.secagg.confirmation import sign_confirmation
from fedattn.secagg.messages import Kind, MaskedVector, RevealedShares
from fedattn.secagg.wire import Stage, signed_message
from tests.secagg.harness import STATEMENT, Round, make_spec, sha
from tests.secagg.test_client_checks import advert, refuses


def left_out(r, stage):
    """A round before `stage`'s relay in which member 3's message of `stage` is still to come."""
    r.gone = {stage: {3}}
    getattr(r.until(stage), stage.name.lower())()
    return r


def finish(r, stage, survivors):
    r.gone = {}
    for later in list(Stage)[stage:5]:
        getattr(r, later.name.lower())()
    assert r.server.total().tolist() == r.plain_sum(survivors).tolist()


def test_a_bad_advertisement_leaves_its_sender_out():
    r = left_out(Round(make_spec(5, 3)), Stage.ADVERTISE)
    victim = messages.Advertisement.decode(r.sent[Stage.ADVERTISE, 1][39:-64])
    own = messages.Advertisement.decode(r.sent[Stage.ADVERTISE, 3][39:-64])
    old = replace(r.spec, instruction_hash=sha("old round"))
    for check, index, message in (
        ("decode", 3, b""),
        ("message.signature", 3, r.sent[Stage.ADVERTISE, 3][:-64] + bytes(64)),
        ("message.index", 3, r.sent[Stage.ADVERTISE, 2]),
        ("message.instruction", 3, advert(r, 3, spec=old)),
        ("keys.repeated", 3, advert(r, 3, mask=victim.mask_key)),
        ("keys.repeated", 3, advert(r, 3, mask=own.transport_key)),
        ("keys.point", 3, advert(r, 3, transport=bytes(32))),
        ("keys.neighbours", 3, advert(r, 3, neighbours=(1,))),
        ("roster", 6, r.sent[Stage.ADVERTISE, 3]),
        ("repeat", 2, r.sent[Stage.ADVERTISE, 2]),
    ):
        refuses(check, r.server.advertised, index, message)
        assert r.server.advertisers == (1, 2, 4, 5)
    finish(r, Stage.ADVERTISE, [1, 2, 4, 5])


def test_bad_packets_leave_their_sender_out():
    r = left_out(Round(make_spec(5, 3)), Stage.SHARE)
    good = messages.Packets.decode(r.sent[Stage.SHARE, 3][39:-64]).packets

    def send(packets):
        body = messages.Packets(tuple(packets)).encode()
        return signed_message(r.spec, r.keys[3], Stage.SHARE, 3, body)

    for check, index, message in (
        ("message.signature", 3, r.sent[Stage.SHARE, 3][:-64] + bytes(64)),
        ("packets.recipients", 3, send(good[:-1])),
        ("packets.recipients", 3, send([good[0], *good])),
        ("packets.recipients", 3, send([*good, (9, good[0][1])])),
        ("roster", 6, r.sent[Stage.SHARE, 3]),
        ("repeat", 2, r.sent[Stage.SHARE, 2]),
    ):
        refuses(check, r.server.shared, index, message)
        assert r.server.sharers == (1, 2, 4, 5)
    refuses("stage", r.server.advertised, 3, r.sent[Stage.ADVERTISE, 3])
    r.server.mailbox(1)
    refuses("mailbox.recipient", r.server.mailbox, 3)
    finish(r, Stage.SHARE, [1, 2, 4, 5])


def test_a_malformed_or_short_vector_is_dropped_and_the_others_sum_stays_exact():
    r = left_out(Round(make_spec(5, 3)), Stage.UPLOAD)
    before = r.server._sum.copy()

    def send(bits, words):
        body = MaskedVector(bits, words).encode()
        return signed_message(r.spec, r.keys[3], Stage.UPLOAD, 3, *body)

    sent = r.sent[Stage.UPLOAD, 3]
    for check, index, message in (
        ("message.signature", 3, sent[:-64] + bytes(64)),
        ("message.signature", 3, sent[:50] + bytes([sent[50] ^ 1]) + sent[51:]),
        ("decode", 3, sent[:30]),
        ("vector.dimension", 3, send(32, np.zeros(4, np.uint32))),
        ("vector.dimension", 3, send(32, np.zeros(6, np.uint32))),
        ("vector.modulus_bits", 3, send(16, np.zeros(5, np.uint16))),
        ("vector.modulus_bits", 3, send(31, np.zeros(5, np.uint32))),
        ("repeat", 2, r.sent[Stage.UPLOAD, 2]),
        ("roster", 6, sent),
    ):
        refuses(check, r.server.uploaded, index, message)
        assert (r.server._sum == before).all()
        assert r.server.survivor_indices == (1, 2, 4, 5)
    r.server.survivors()
    refuses("stage", r.server.uploaded, 3, sent)
    finish(r, Stage.UPLOAD, [1, 2, 4, 5])


def test_a_bad_confirmation_is_not_counted():
    r = left_out(Round(make_spec(5, 3)), Stage.CONFIRM)
    hash_ = r.server.survivors_hash

    def send(said=hash_, statement=STATEMENT, signature=None):
        signature = signature or sign_confirmation(
            r.keys[3], r.spec.instruction_hash, said, statement
        )
        body = messages.Confirmation(said, statement, signature).encode()
        return r.sent[Stage.CONFIRM, 3][:39] + body

    for check, index, message, statement in (
        ("confirmation.survivors", 3, send(said=sha("list")), STATEMENT),
        ("confirmation.statement", 3, send(statement=sha("intent")), STATEMENT),
        ("statement", 3, send(statement=sha("intent")), sha("intent")),
        ("statement", 3, send(), b"short"),
        ("confirmation.signature", 3, send(signature=bytes(64)), STATEMENT),
        ("message.index", 3, r.sent[Stage.CONFIRM, 2], STATEMENT),
        ("repeat", 2, r.sent[Stage.CONFIRM, 2], STATEMENT),
        ("decode", 3, send() + b"\0", STATEMENT),
    ):
        refuses(check, r.server.confirmed, index, message, statement)
        assert sorted(r.server.confirmation_signatures) == [1, 2, 4, 5]
    finish(r, Stage.CONFIRM, [1, 2, 3, 4, 5])


def test_shares_that_were_not_asked_for_are_refused():
    r = Round(make_spec(5, 3), gone={Stage.UPLOAD: {5}})
    r.until(Stage.UNMASK)
    r.gone = {Stage.UNMASK: {3}}
    r.unmask()
    good = RevealedShares.decode(r.sent[Stage.UNMASK, 3][39:-64]).shares

    def send(shares):
        body = RevealedShares(tuple(shares)).encode()
        return signed_message(r.spec, r.keys[3], Stage.UNMASK, 3, body)

    for check, message in (
        ("shares.kind", send([(1, Kind.MASK_KEY, 1)])),  # of a survivor
        ("shares.kind", send([(5, Kind.SELF_SEED, 1)])),  # of a dropout
        ("shares.kind", send([(6, Kind.MASK_KEY, 1)])),
        ("shares.distinct", send([good[0], good[0]])),
        ("message.signature", r.sent[Stage.UNMASK, 3][:-1] + b"\0"),
    ):
        refuses(check, r.server.revealed, 3, message)
        assert r.server.revealers == (1, 2, 4)
    refuses("roster", r.server.revealed, 5, send(good))
    refuses("repeat", r.server.revealed, 2, r.sent[Stage.UNMASK, 2])
    r.server.revealed(3, send(good[:1]))  # fewer shares are no lie
    assert r.server.total().tolist() == r.plain_sum([1, 2, 3, 4]).tolist()
    refuses("stage", r.server.revealed, 3, send(good))


def test_relays_close_their_stage_and_repeat_the_same_bytes():
    r = Round(make_spec(4, 3)).advertise()
    with pytest.raises(ProtocolError, match="stage"):
        r.server.confirmations()
    assert r.server.key_list() == r.server.key_list()
    r.share()
    assert r.server.mailbox(1) == r.server.mailbox(1)
    refuses("stage", r.server.shared, 1, r.sent[Stage.SHARE, 1])
    refuses("stage", r.server.key_list)
    r.upload()
    assert r.server.survivors() == r.server.survivors()
    r.confirm()
    assert r.server.confirmations() == r.server.confirmations()
    r.unmask()
    first = r.server.total()
    first[:] = 0
    assert r.server.total().tolist() == r.plain_sum([1, 2, 3, 4]).tolist()


def test_an_upload_is_not_counted_twice():
    r = Round(make_spec(4, 3)).until(Stage.UPLOAD)
    mailbox = r.server.mailbox(1)
    step = client.upload(r.state(Stage.UPLOAD, 1), r.keys[1], mailbox, r.vectors[1])
    r.server.uploaded(1, step[1])
    refuses("repeat", r.server.uploaded, 1, step[1])
