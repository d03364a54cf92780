"""A round without masks: a masked one's sum, and no way from one kind of round to the other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest

from fedattn.errors import ProtocolError, ThresholdError, UpdateError
from fedattn.randomness import Randomness
from fedattn.secagg import ClientState, arithmetic, client, verify_confirmation
from fedattn.secagg.arithmetic import ArithmeticRound, ArithmeticState
from fedattn.secagg.messages import MaskedVector
from fedattn.secagg.server import ServerRound
from fedattn.secagg.wire import Stage, header, signed_message
from tests.secagg.harness import STATEMENT, Round, identities, make_spec


def unmasked(*args, **keywords):
    return replace(make_spec(*args, **keywords), is_masked=False)


@dataclass
class Plain:
    """An honest round without masks, up to the uploads' arrival."""

    spec: object
    states: dict = field(default_factory=dict)
    sent: dict = field(default_factory=dict)

    def __post_init__(self):
        self.keys = dict(enumerate(identities(len(self.spec.roster)), 1))
        rng = np.random.default_rng(0)
        bits, d = self.spec.modulus_bits, self.spec.dimension
        self.vectors = {i: rng.integers(0, 2**bits, d, np.uint32) for i in self.spec.members}
        self.server = ArithmeticRound(self.spec)
        for i in self.spec.members:
            state = arithmetic.begin(self.spec, i, self.keys[i])
            self.server.advertised(i)
            self.states[i], self.sent[i] = arithmetic.upload(state, self.keys[i], self.vectors[i])

    def upload(self, members):
        for i in self.server.uploads and members:
            self.server.uploaded(i, self.sent[i])
        return self

    def confirm(self, members):
        listed = self.server.survivors()
        for i in members:
            state, message = arithmetic.confirm(self.states[i], self.keys[i], listed, STATEMENT)
            assert state.next_stage == Stage.DONE
            self.server.confirmed(i, message, STATEMENT)
        return self

    def plain_sum(self, members):
        total = sum(self.vectors[i].astype(np.uint64) for i in members)
        return (total % (1 << self.spec.modulus_bits)).astype(np.uint32)


def refuses(check, call, *args):
    with pytest.raises(ProtocolError) as caught:
        call(*args)
    assert caught.value.check == check


@pytest.mark.parametrize("bits", [8, 13, 16, 17, 31, 32])
def test_the_sum_is_that_of_the_survivors_and_of_a_masked_round(bits):
    survivors = (1, 2, 4, 5)
    plain = Plain(unmasked(5, 4, 1, 9, bits)).upload(survivors).confirm(survivors)
    total = plain.server.total()
    assert (total == plain.plain_sum(survivors)).all()
    masked = Round(make_spec(5, 4, 1, 9, bits), plain.vectors, gone={Stage.UPLOAD: {3}})
    assert (masked.run() == total).all()
    assert masked.server.survivors_hash == plain.server.survivors_hash


def test_survivors_sign_list_and_statement_as_in_a_masked_round():
    plain = Plain(unmasked(4, 3)).upload((1, 2, 3, 4)).confirm((1, 2, 3))
    for i, signature in plain.server.confirmation_signatures.items():
        signed = (plain.spec.instruction_hash, plain.server.survivors_hash, STATEMENT)
        assert verify_confirmation(plain.spec.public_key(i), *signed, signature)


def test_too_few_at_any_stage_release_nothing():
    spec = unmasked(5, 4)
    server = ArithmeticRound(spec)
    for i in (1, 2, 3):
        server.advertised(i)
    with pytest.raises(ThresholdError, match="3 advertisers, need 4; round 7 aborted, nothing rel"):
        _ = server.uploads
    with pytest.raises(ThresholdError, match="3 survivors"):
        Plain(spec).upload((1, 2, 3)).server.survivors()
    with pytest.raises(ThresholdError, match="3 confirmations"):
        Plain(spec).upload((1, 2, 3, 4)).confirm((1, 2, 3)).server.total()


# ---- no way from one kind of round to the other


def test_no_step_without_masks_takes_a_masked_spec():
    spec, key = make_spec(4, 3), identities(4)[0]
    refuses("masks", arithmetic.begin, spec, 1, key)
    refuses("masks", ArithmeticState, spec, 1)
    stored = arithmetic.begin(unmasked(4, 3), 1, key).to_bytes()
    refuses("masks", ArithmeticState.from_bytes, stored, spec)
    refuses("masks", ArithmeticRound, spec)


def test_no_masked_step_takes_a_spec_without_masks():
    spec, key = unmasked(4, 3), identities(4)[0]
    refuses("masks", client.advertise, spec, 1, key, Randomness.seeded(0, "x"))
    refuses("masks", ServerRound, spec)
    refuses("masks", spec.to_bytes)  # so that no state of a masked round can be kept of it
    sparse = make_spec(9, 7, degree=4, share_threshold=3)
    refuses("spec.degree", partial(replace, sparse, is_masked=False))


def test_neither_state_reads_the_others_bytes():
    masked = Round(make_spec(4, 3)).until(Stage.UPLOAD)
    plain = Plain(unmasked(4, 3))
    refuses("decode", ClientState.from_bytes, plain.states[1].to_bytes())
    stored = masked.state(Stage.UPLOAD, 1).to_bytes()
    refuses("decode", ArithmeticState.from_bytes, stored, plain.spec)


def test_a_state_is_what_it_was_and_of_a_known_stage():
    plain = Plain(unmasked(4, 3))
    for state in plain.states.values():
        assert ArithmeticState.from_bytes(state.to_bytes(), plain.spec) == state
    stored = plain.states[1].to_bytes()
    for spoiled in (b"", stored[:-1], stored + b"\0", stored[:-5] + b"\2" + stored[-4:]):
        refuses("decode", ArithmeticState.from_bytes, spoiled, plain.spec)


# ---- a client's checks


def test_each_stage_once_and_in_order_and_by_its_own_member():
    plain = Plain(unmasked(4, 3))
    begun, key = arithmetic.begin(plain.spec, 1, plain.keys[1]), plain.keys[1]
    listed = plain.upload((1, 2, 3)).server.survivors()
    refuses("stage", arithmetic.upload, plain.states[1], key, plain.vectors[1])
    refuses("stage", arithmetic.check_upload, plain.states[1], key)
    refuses("stage", arithmetic.confirm, begun, key, listed, STATEMENT)
    refuses("identity", arithmetic.upload, begun, plain.keys[2], plain.vectors[1])
    refuses("identity", arithmetic.begin, plain.spec, 1, plain.keys[2])
    refuses("roster", arithmetic.begin, plain.spec, 5, plain.keys[1])
    done, _ = arithmetic.confirm(plain.states[1], key, listed, STATEMENT)
    refuses("stage", arithmetic.confirm, done, key, listed, STATEMENT)


@pytest.mark.parametrize("vector", [np.zeros(4, np.uint32), np.zeros(5, np.int64)])
def test_a_vector_of_another_shape_or_type_is_not_sent(vector):
    plain = Plain(unmasked(4, 3))
    begun = arithmetic.begin(plain.spec, 1, plain.keys[1])
    with pytest.raises(UpdateError):
        arithmetic.upload(begun, plain.keys[1], vector)


def test_a_survivor_list_that_cannot_be_is_not_signed():
    plain = Plain(unmasked(5, 4))
    good = plain.upload((1, 2, 3, 4)).server.survivors()
    state, key = plain.states[1], plain.keys[1]

    def listed(*indices):
        fields = (len(indices), *indices)
        return good[:39] + b"".join(each.to_bytes(4, "big") for each in fields)

    assert listed(1, 2, 3, 4) == good
    for check, message in (
        ("survivors.distinct", listed(1, 1, 2, 3)),
        ("survivors.distinct", listed(2, 1, 3, 4)),
        ("survivors.subset", listed(1, 2, 3, 6)),
        ("survivors.threshold", listed(1, 2, 3)),
        ("survivors.self", listed(2, 3, 4, 5)),
        ("decode", good + b"\0"),
        ("message.stage", bytes([good[0], 3]) + good[2:]),
    ):
        refuses(check, arithmetic.confirm, state, key, message, STATEMENT)
    refuses("statement", arithmetic.confirm, state, key, good, b"short")


# ---- the server's


def test_an_upload_that_cannot_be_added_leaves_the_sum_as_it_was():
    plain = Plain(unmasked(5, 3, bits=13)).upload((1, 2))
    other = Plain(unmasked(5, 3, bits=13, instruction=hashlib.sha256(b"other").digest()))
    spec, key = plain.spec, plain.keys[3]

    def send(bits, words):
        return signed_message(spec, key, Stage.UPLOAD, 3, *MaskedVector(bits, words).encode())

    sent = plain.sent[3]
    for check, index, message in (
        ("message.signature", 3, sent[:-1] + bytes([sent[-1] ^ 1])),
        ("message.signature", 3, sent[:50] + bytes([sent[50] ^ 1]) + sent[51:]),
        ("message.instruction", 3, other.sent[3]),
        ("message.index", 3, plain.sent[4]),
        ("message.stage", 3, header(spec, Stage.SHARE, 2, 3) + sent[39:]),
        ("vector.modulus_bits", 3, send(14, np.zeros(5, np.uint16))),
        ("vector.dimension", 3, send(13, np.zeros(6, np.uint16))),
        ("repeat", 2, plain.sent[2]),
        ("roster", 6, sent),
    ):
        refuses(check, plain.server.uploaded, index, message)
    plain.upload((3,)).confirm((1, 2, 3))
    assert (plain.server.total() == plain.plain_sum((1, 2, 3))).all()
    refuses("stage", plain.server.uploaded, 4, plain.sent[4])
    refuses("stage", plain.server.advertised, 5)
