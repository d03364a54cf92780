"""Rounds over drawn neighbours: any surviving set, and what the server checks."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.errors import ProtocolError, ThresholdError
from fedattn.secagg import client, graph, messages
from fedattn.secagg.confirmation import sign_notice
from fedattn.secagg.messages import Kind, Notice, RevealedShares
from fedattn.secagg.wire import Stage, open_signed, signed_message
from tests.secagg.harness import Round, make_spec
from tests.secagg.test_client_checks import RNG, refuses

CLIENT_STAGES = list(Stage)[:5]
SPEC = make_spec(14, 9, 2, degree=6, share_threshold=4)


def drawn_by(r, i):
    return r.state(Stage.SHARE, i).drawn


@st.composite
def rounds(draw):
    n = draw(st.integers(3, 10))
    c = draw(st.integers(0, n - 2))
    quorum = draw(st.integers((n + c) // 2 + 1, n))
    k = draw(st.integers(1, n - 1))
    t, bits = draw(st.integers(1, k)), draw(st.sampled_from([8, 16, 17, 32]))
    spec = make_spec(n, quorum, c, draw(st.integers(1, 5)), bits, degree=k, share_threshold=t)
    gone: dict[Stage, set[int]] = {}
    for index in draw(st.permutations(range(1, n + 1)))[: draw(st.integers(0, n // 2))]:
        gone.setdefault(draw(st.sampled_from(CLIENT_STAGES)), set()).add(index)
    return Round(spec, gone=gone, serialise=True, tolerant=True)


def revealed_by(r, i):
    body = open_signed(r.spec, r.sent[Stage.UNMASK, i], Stage.UNMASK, i)
    return RevealedShares.decode(body).shares


@given(rounds())
@settings(max_examples=150, deadline=None)
def test_masks_cancel_for_any_surviving_set_that_meets_the_thresholds(r):
    quorum, t = r.spec.threshold, r.spec.share_threshold
    try:
        total = r.run()
    except ThresholdError:
        counts = (r.server.advertisers, r.server.sharers, r.server.survivor_indices)
        assert min(*map(len, (*counts, r.server._signatures, r.server.revealers))) < quorum
        assert r.server._total is None
    except ProtocolError:  # some owner's secret
        left = [len({*drawn_by(r, i)} & {*r.server.revealers}) for i in r.server.sharers]
        assert min(left) < t
        assert r.server._total is None
    else:
        assert total.tolist() == r.plain_sum(r.server.survivor_indices).tolist()
        assert len(r.server.revealers) >= quorum
    # who refused was short of its own draws
    assert set(r.refused.values()) <= {"keys.drawn", "mailbox.drawn", "survivors.drawn"}
    # and nobody, alone or with others, revealed both kinds for one member
    kinds = {}
    for stage, i in r.sent:
        for owner, kind, _ in revealed_by(r, i) if stage == Stage.UNMASK else ():
            assert kinds.setdefault(owner, kind) == kind
            assert i in drawn_by(r, owner)


def test_a_round_of_secure_parameters_sums_exactly():
    k, t = graph.parameters(60, 0.02, 0.02, quorum=31)
    assert 0 < k < 60
    spec = make_spec(60, 31, 1, 9, 16, degree=k, share_threshold=t)
    assert client.advertise(spec, 1, Round(spec).keys[1], RNG)[0].drawn
    r = Round(spec, gone={Stage.UPLOAD: {7}})
    assert r.run().tolist() == r.plain_sum(r.server.survivor_indices).tolist()


def test_insecure_parameters_are_refused_before_anything_is_drawn():
    key = Round(SPEC).keys[1]
    refuses("spec.degree", client.advertise, SPEC, 1, key, RNG)


# ---- the server


def test_the_server_checks_recipients_notices_and_holders():
    r = Round(SPEC, gone={Stage.SHARE: {3}}).until(Stage.SHARE)
    refuses("keys.recipient", r.server.key_list)
    r.share()
    good = messages.Packets.decode(r.sent[Stage.SHARE, 3][39:-64]).packets
    stranger = next(i for i in r.spec.members if i not in drawn_by(r, 3) and i != 3)
    for packets in (good[1:], tuple(sorted((*good, (stranger, good[0][1]))))):
        body = messages.Packets(packets).encode()
        message = signed_message(r.spec, r.keys[3], Stage.SHARE, 3, body)
        refuses("packets.recipients", r.server.shared, 3, message)
    r.server.shared(3, r.sent[Stage.SHARE, 3])
    r.gone = {Stage.UPLOAD: {3}}
    r.upload()
    sent = messages.MaskedVector.decode(r.sent[Stage.UPLOAD, 3][39:-64])
    wrong = sign_notice(r.keys[3], r.spec.instruction_hash, 3, (4,))
    for notice in (
        None,
        Notice(3, (4,), wrong),
        Notice(3, (), wrong),
        replace(sent.notice, owner=4),
    ):
        body = replace(sent, notice=notice).encode()
        message = signed_message(r.spec, r.keys[3], Stage.UPLOAD, 3, *body)
        refuses("notice", r.server.uploaded, 3, message)
    r.server.uploaded(3, r.sent[Stage.UPLOAD, 3])
    refuses("mailbox.recipient", r.server.mailbox, 3)
    r.gone = {}
    r.confirm()
    refuses("confirmations.recipient", r.server.confirmations)
    r.gone = {Stage.UNMASK: {3}}
    r.unmask()
    owner = next(i for i in r.spec.members if 3 not in drawn_by(r, i) and i != 3)
    shares = RevealedShares(((owner, Kind.SELF_SEED, 1),)).encode()
    message = signed_message(r.spec, r.keys[3], Stage.UNMASK, 3, shares)
    refuses("shares.kind", r.server.revealed, 3, message)
    r.server.revealed(3, r.sent[Stage.UNMASK, 3])
    assert r.server.total().tolist() == r.plain_sum(r.spec.members).tolist()


def test_a_complete_graph_takes_no_notice():
    r = Round(make_spec(4, 3), gone={Stage.UPLOAD: {2}}).until(Stage.CONFIRM)
    signature = sign_notice(r.keys[2], r.spec.instruction_hash, 2, ())
    sent = messages.MaskedVector(32, np.zeros(5, np.uint32), Notice(2, (), signature))
    message = signed_message(r.spec, r.keys[2], Stage.UPLOAD, 2, *sent.encode())
    refuses("notice", r.server.uploaded, 2, message)
