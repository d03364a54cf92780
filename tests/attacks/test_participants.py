"""Members that lie: they are found or left out, or the round is lost; never a wrong sum unseen."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.errors import ProtocolError, ThresholdError, UpdateError
from fedattn.randomness import Randomness
from fedattn.secagg.messages import MaskedVector
from fedattn.secagg.shamir import P
from fedattn.secagg.wire import Stage, signed_message
from fedattn.update import Codec
from tests.attacks.adversary import CLIENT_STAGES, refuses, reveal, revealed
from tests.secagg.harness import Round, make_spec

# ---- shares


def lie(r, i, rng):
    """Member `i` reveals shares of which any number are random, shifted, or left out."""
    told = []
    for owner, kind, value in revealed(r, r.sent[Stage.UNMASK, i], i):
        wrong = rng.choice([value, rng.randrange(P), (value + 1) % P, None])
        if wrong is not None:
            told.append((owner, kind, wrong))
    return reveal(r, i, told)


@pytest.mark.parametrize("liars", range(6))
def test_lying_about_shares_gives_the_exact_sum_or_none(liars):
    for seed, who in enumerate(combinations(range(1, 6), liars)):
        rng = random.Random(seed)
        r = Round(make_spec(6, 4), gone={Stage.UPLOAD: {6}, Stage.UNMASK: set(who)})
        r.until(Stage.DONE)
        for i in who:
            r.server.revealed(i, lie(r, i, rng))
        try:
            total = r.server.total()
        except (ProtocolError, ThresholdError):
            assert liars > 1  # five reveals, four needed: one liar costs nothing
            assert r.server._total is None
        else:
            assert total.tolist() == r.plain_sum(range(1, 6)).tolist()


# ---- vectors


def one_still_to_upload(d=5, bits=32):
    r = Round(make_spec(4, 3, d=d, bits=bits), gone={Stage.UPLOAD: {4}}).until(Stage.UPLOAD)
    return r.upload()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_malformed_vector_drops_its_sender_and_the_others_sum_stays_exact(data):
    r = one_still_to_upload()
    message = bytearray(r.sent[Stage.UPLOAD, 4])
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "splice"]))
    place = data.draw(st.integers(0, len(message) - 1))
    if kind == "flip":
        message[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del message[place:]
    elif kind == "extend":
        message += data.draw(st.binary(min_size=1, max_size=40))
    else:
        message[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    with pytest.raises(ProtocolError):
        r.server.uploaded(4, bytes(message))
    r.confirm().unmask()
    assert r.server.survivor_indices == (1, 2, 3)
    assert r.server.total().tolist() == r.plain_sum([1, 2, 3]).tolist()


@pytest.mark.parametrize(
    ("check", "bits", "words"),
    [
        ("vector.dimension", 32, np.zeros(4, np.uint32)),  # short
        ("vector.dimension", 32, np.zeros(0, np.uint32)),
        ("vector.dimension", 32, np.zeros(6, np.uint32)),  # long
        ("vector.modulus_bits", 16, np.zeros(5, np.uint16)),
        ("vector.modulus_bits", 31, np.zeros(5, np.uint32)),
    ],
)
def test_a_signed_vector_of_another_length_or_modulus(check, bits, words):
    r = one_still_to_upload()
    body = MaskedVector(bits, words).encode()
    refuses(check, r.server.uploaded, 4, signed_message(r.spec, r.keys[4], Stage.UPLOAD, 4, *body))
    r.confirm().unmask()
    assert r.server.total().tolist() == r.plain_sum([1, 2, 3]).tolist()


@pytest.mark.parametrize("stage", CLIENT_STAGES, ids=lambda stage: stage.name.lower())
def test_sending_a_message_twice_or_in_anothers_name(stage):
    r = Round(make_spec(5, 3), gone={stage: {5}})
    getattr(r.until(stage), stage.name.lower())()
    accept = {
        Stage.ADVERTISE: r.server.advertised,
        Stage.SHARE: r.server.shared,
        Stage.UPLOAD: r.server.uploaded,
        Stage.CONFIRM: lambda i, message: r.server.confirmed(i, message, b"\0" * 32),
        Stage.UNMASK: r.server.revealed,
    }[stage]
    if stage != Stage.CONFIRM:
        refuses("repeat", accept, 1, r.sent[stage, 1])
        refuses("message.index", accept, 5, r.sent[stage, 1])
    r.gone = {}
    for later in CLIENT_STAGES[stage:]:
        getattr(r, later.name.lower())()
    if stage != Stage.UNMASK:
        survivors = r.server.survivor_indices
        assert r.server.total().tolist() == r.plain_sum(survivors).tolist()


# ---- updates


CODEC = Codec(clip_range=0.5, grid_scale=1024.0)
EXTREMES = [np.nan, np.inf, -np.inf, 1e308, -1e308, 3e38, -3e38, 0.5, -0.5, 0.0, 5e-324]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_inf_and_oversize_updates_stay_within_the_clip_range(dtype):
    """NaN cast to an integer is INT_MIN: one coordinate would outweigh a whole federation."""
    with np.errstate(over="ignore"):
        delta = np.array(EXTREMES * 50, dtype)
    signed = CODEC.encode(delta, Randomness.seeded(1)).view(np.int32)
    assert np.abs(signed).max() <= 0.5 * 1024 + 1
    assert not signed[np.isnan(delta)].any()


def test_weights_that_overflow_one_client_leave_the_mean_of_all_bounded():
    encoded = [
        CODEC.encode(np.full(8, value, np.float32), Randomness.seeded(seed))
        for seed, value in enumerate((np.nan, np.inf, 0.25))
    ]
    mean = CODEC.decode_mean(sum(encoded).astype(np.uint32), 3)
    assert np.abs(mean - (0 + 0.5 + 0.25) / 3).max() < 1 / 1024


def test_an_update_outside_the_range_is_seen_in_the_sum():
    """Found only where it passes what all together may reach: poisoning is not prevented."""
    honest = CODEC.encode(np.full(8, 0.1), Randomness.seeded(1))
    poison = np.full(8, 1 << 30, np.uint32)
    with pytest.raises(UpdateError, match="beyond the bound"):
        CODEC.decode_mean(honest + poison, 2)
