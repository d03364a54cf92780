import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.errors import ProtocolError, ThresholdError, UpdateError
from fedattn.secagg import (
    ClientState,
    client,
    confirmation_bytes,
    survivors_sha256,
    verify_confirmation,
)
from fedattn.secagg.messages import Kind, MaskedVector, RevealedShares
from fedattn.secagg.shamir import P
from fedattn.secagg.wire import Stage, open_signed, signed_message
from tests.secagg.harness import STATEMENT, Round, make_spec, sha

CLIENT_STAGES = list(Stage)[:5]


@st.composite
def rounds(draw):
    n = draw(st.integers(1, 7))
    c = draw(st.integers(0, max(0, n - 2)))
    t = draw(st.integers((n + c) // 2 + 1, n))
    bits = draw(st.sampled_from([8, 13, 16, 17, 32]))
    spec = make_spec(n, t, c, draw(st.integers(1, 9)), bits)
    gone: dict[Stage, set[int]] = {}
    order = draw(st.permutations(range(1, n + 1)))
    for index in order[: draw(st.integers(0, n))]:
        gone.setdefault(draw(st.sampled_from(CLIENT_STAGES)), set()).add(index)
    return Round(spec, gone=gone, seed=0)


@given(rounds())
@settings(max_examples=120, deadline=None)
def test_masks_cancel_for_any_surviving_set_and_below_threshold_nothing_is_unmasked(r):
    lost = [set().union(*(r.gone.get(s, set()) for s in Stage if s <= st_)) for st_ in Stage]
    members = set(r.spec.members)
    counts = {stage: len(members - lost[stage - 1]) for stage in CLIENT_STAGES}
    t = r.spec.threshold
    if min(counts.values()) < t:
        with pytest.raises(ThresholdError, match=r"need \d+; round 7 aborted, nothing unmasked"):
            r.run()
        assert r.server._total is None
        return
    survivors = sorted(members - lost[Stage.UPLOAD - 1])
    total = r.run()
    assert total.dtype == np.uint32
    assert total.tolist() == r.plain_sum(survivors).tolist()
    assert r.server.survivor_indices == tuple(survivors)


@pytest.mark.parametrize("stage", CLIENT_STAGES)
def test_each_stage_survives_dropouts_down_to_the_threshold(stage):
    r = Round(make_spec(5, 4), gone={stage: {2}})
    total = r.run()
    left = [1, 2, 3, 4, 5] if stage > Stage.UPLOAD else [1, 3, 4, 5]
    assert total.tolist() == r.plain_sum(left).tolist()


@pytest.mark.parametrize(
    ("stage", "noun"),
    [
        (Stage.ADVERTISE, "advertisers"),
        (Stage.SHARE, "sharers"),
        (Stage.UPLOAD, "survivors"),
        (Stage.CONFIRM, "confirmations"),
        (Stage.UNMASK, "reveals"),
    ],
)
def test_server_cannot_unmask_below_threshold(stage, noun):
    r = Round(make_spec(5, 4), gone={stage: {2, 3}})
    with pytest.raises(ThresholdError) as caught:
        r.run()
    assert str(caught.value) == f"3 {noun}, need 4; round 7 aborted, nothing unmasked"
    before = r.server._sum.copy()
    with pytest.raises((ThresholdError, ProtocolError)):
        r.server.total()
    assert (r.server._sum == before).all()


def test_nobody_at_all_is_a_threshold_error_too():
    r = Round(make_spec(5, 4), gone={Stage.SHARE: {1, 2, 3, 4, 5}}).until(Stage.UPLOAD)
    with pytest.raises(ThresholdError, match="0 sharers, need 4"):
        r.server.survivors()


def test_one_client_is_a_reference_run_with_the_self_mask_alone():
    r = Round(make_spec(1, 1, d=9))
    assert r.run().tolist() == r.vectors[1].tolist()
    sent = MaskedVector.decode(open_signed(r.spec, r.sent[Stage.UPLOAD, 1], Stage.UPLOAD, 1))
    assert sent.words.tolist() != r.vectors[1].tolist()


def test_vectors_longer_than_a_chunk_of_keystream_sum_exactly():
    for bits in (16, 32):
        r = Round(make_spec(3, 2, d=150_001, bits=bits), gone={Stage.UPLOAD: {3}})
        assert (r.run() == r.plain_sum([1, 2])).all()


def _hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 by hand, one block: a twin that shares no code with the library."""
    prk = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def _keystream(key: bytes, d: int) -> list[int]:
    """AES-256-CTR by hand: the block cipher on a counter."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    raw = b"".join(ecb.update(i.to_bytes(16, "big")) for i in range(d // 4 + 1))
    return [int.from_bytes(raw[4 * i : 4 * i + 4], "little") for i in range(d)]


def test_masking_equals_a_slow_textbook_twin():
    d = 11
    r = Round(make_spec(4, 3, d=d)).until(Stage.CONFIRM)
    before = {i: r.state(Stage.UPLOAD, i) for i in r.spec.members}
    for i in r.spec.members:
        expected = [int(v) for v in r.vectors[i]]
        info = b"fedattn/v1/self-mask" + r.spec.instruction_hash + i.to_bytes(4, "big")
        terms = [(1, _hkdf(before[i].self_seed, info))]
        for j in r.spec.members:
            if j == i:
                continue
            theirs = X25519PrivateKey.from_private_bytes(before[j].mask_secret).public_key()
            mine = X25519PrivateKey.from_private_bytes(before[i].mask_secret)
            low, high = min(i, j), max(i, j)
            info = b"fedattn/v1/pairwise-mask" + r.spec.instruction_hash
            info += low.to_bytes(4, "big") + high.to_bytes(4, "big")
            public = X25519PublicKey.from_public_bytes(theirs.public_bytes_raw())
            terms.append((1 if i < j else -1, _hkdf(mine.exchange(public), info)))
        for sign, key in terms:
            expected = [
                (v + sign * m) % 2**32 for v, m in zip(expected, _keystream(key, d), strict=True)
            ]
        sent = open_signed(r.spec, r.sent[Stage.UPLOAD, i], Stage.UPLOAD, i)
        assert MaskedVector.decode(sent).words.tolist() == expected


def test_masked_vectors_look_uniform():
    # chi-square over 256 byte values, 255 degrees of freedom: mean 255, sd 22.6; fixed seed
    spec = make_spec(3, 2, d=50_000)
    r = Round(spec, {i: np.zeros(50_000, np.uint32) for i in spec.members}).until(Stage.CONFIRM)
    for i in spec.members:
        sent = MaskedVector.decode(open_signed(spec, r.sent[Stage.UPLOAD, i], Stage.UPLOAD, i))
        counts = np.bincount(sent.words.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        assert 170 < ((counts - expected) ** 2 / expected).sum() < 350


def test_equal_seeds_give_equal_transcripts_and_other_seeds_other_ones():
    transcripts = []
    for seed in (0, 0, 1):
        r = Round(make_spec(4, 3, seed=seed), gone={Stage.UPLOAD: {2}}, seed=seed)
        r.run()
        mail = tuple(r.mailboxes.values())
        served = (r.key_list, *mail, r.survivors, r.confirmations)
        transcripts.append((tuple(r.sent.values()), served))
    assert transcripts[0] == transcripts[1] != transcripts[2]


def test_a_transcript_is_the_one_that_was_recorded():
    r = Round(make_spec(4, 3), gone={Stage.UPLOAD: {2}})
    r.run()
    digest = hashlib.sha256(b"".join(r.sent.values())).hexdigest()
    assert digest == RECORDED


def test_state_survives_serialisation_at_each_stage():
    r = Round(make_spec(4, 3), gone={Stage.UPLOAD: {2}}, serialise=True)  # asserts equality
    assert r.run().tolist() == r.plain_sum([1, 3, 4]).tolist()


def test_values_above_the_modulus_are_reduced_never_refused():
    spec = make_spec(3, 2, d=4, bits=8)
    r = Round(spec, {i: np.full(4, 2**32 - i, np.uint32) for i in spec.members})
    assert r.run().tolist() == [(-6) % 256] * 4


@pytest.mark.parametrize(
    "vector", [np.zeros(4, np.uint32), np.zeros(5, np.int64), np.zeros((5, 1), np.uint32)]
)
def test_a_vector_of_another_shape_or_type_is_refused(vector):
    r = Round(make_spec()).until(Stage.UPLOAD)
    mailbox = r.server.mailbox(1)
    with pytest.raises(UpdateError, match=r"uint32 of shape \(5,\)"):
        client.upload(r.state(Stage.UPLOAD, 1), r.keys[1], mailbox, vector)


def test_an_auditor_verifies_confirmations_from_hashes_alone():
    r = Round(make_spec())
    r.run()
    hash_ = survivors_sha256([1, 2, 3, 4])
    assert r.server.survivors_hash == hash_
    for i, signature in r.server.confirmation_signatures.items():
        args = (r.spec.instruction_hash, hash_, STATEMENT)
        assert verify_confirmation(r.spec.roster[i - 1], *args, signature)
        for k in range(3):
            other = [*args[:k], sha("other"), *args[k + 1 :]]
            assert not verify_confirmation(r.spec.roster[i - 1], *other, signature)
    assert not verify_confirmation(r.spec.roster[0], *args, signature)
    with pytest.raises(ProtocolError, match=r"confirmation\.bytes"):
        confirmation_bytes(b"short", hash_, STATEMENT)
    with pytest.raises(ProtocolError, match=r"survivors\.distinct"):
        survivors_sha256([1, 1])


def test_secrets_are_dropped_as_soon_as_they_are_used():
    r = Round(make_spec(4, 3), gone={Stage.UPLOAD: {2}})
    r.run()
    first = r.state(Stage.SHARE, 1)
    secrets = (first.mask_secret, first.transport_secret, first.self_seed)
    after_upload = r.state(Stage.CONFIRM, 1).to_bytes()
    assert not any(secret in after_upload for secret in secrets)
    done = r.state(Stage.DONE, 1)
    assert done == ClientState(r.spec, 1, Stage.DONE)


def test_reprs_omit_secrets():
    r = Round(make_spec())
    r.run()
    for (stage, i), state in r.states.items():
        text = repr(state) + repr(state.held)
        assert "<omitted>" in text
        for secret in (state.mask_secret, state.transport_secret, state.self_seed):
            assert not secret or (repr(secret) not in text and secret.hex() not in text), stage
        for held in state.held:
            assert str(held.seed_share) not in text
            assert str(held.key_share) not in text
        assert f"index={i}" in text
    assert "<omitted>" in repr(r.server)
    assert repr(RevealedShares(((1, Kind.SELF_SEED, 5),))) == "RevealedShares(shares=<omitted>)"


def _lie(r: Round, i: int) -> None:
    body = open_signed(r.spec, r.sent[Stage.UNMASK, i], Stage.UNMASK, i)
    honest = RevealedShares.decode(body).shares
    wrong = tuple((o, kind, (share * (i + 2)) % P) for o, kind, share in honest)
    lies = RevealedShares(wrong).encode()
    r.server.revealed(i, signed_message(r.spec, r.keys[i], Stage.UNMASK, i, lies))


@pytest.mark.parametrize("liars", [{1}, {4}, {7}, {1, 2}, {2, 6}])
def test_a_lying_share_does_not_corrupt_the_sum(liars):
    r = Round(make_spec(8, 5), gone={Stage.UPLOAD: {8}, Stage.UNMASK: liars})
    r.until(Stage.DONE)
    for i in liars:
        _lie(r, i)
    assert r.server.total().tolist() == r.plain_sum(range(1, 8)).tolist()


def test_too_many_lies_name_the_owner_and_leave_the_sum_masked_until_more_is_revealed():
    r = Round(make_spec(5, 3), gone={Stage.UNMASK: {1, 2, 3}}).until(Stage.DONE)
    before = r.server._sum.copy()
    _lie(r, 1)
    _lie(r, 2)
    with pytest.raises(ProtocolError, match="recovery: member 1: no 3 shares agree") as caught:
        r.server.total()
    assert caught.value.check == "recovery"
    assert (r.server._sum == before).all()
    r.server.revealed(3, r.sent[Stage.UNMASK, 3])
    assert r.server.total().tolist() == r.plain_sum(range(1, 6)).tolist()


def test_spoiled_packets_of_a_lying_peer_stop_nobody_up_to_n_minus_t():
    spec = make_spec(5, 3)
    r = Round(spec, gone={Stage.SHARE: {2}}).until(Stage.UPLOAD)
    message = bytearray(r.sent[Stage.SHARE, 2][:-64])
    for slot in range(2):  # the packets for members 1 and 3
        message[39 + 4 + 98 * slot + 20] ^= 1
    r.server.stage = Stage.SHARE
    r.server.shared(2, signed_message(spec, r.keys[2], Stage.SHARE, 2, bytes(message[39:])))
    r.gone = {}
    r.upload().confirm().unmask()
    assert 2 not in [h.owner for h in r.state(Stage.UNMASK, 1).held]
    assert r.server.total().tolist() == r.plain_sum(range(1, 6)).tolist()


RECORDED = "57c71cc4c9b5d5e722264ba13f66c6ea76761f2e2a8e12cb5fb9e51bc1bf66fe"
