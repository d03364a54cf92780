import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.errors import ProtocolError
from fedattn.secagg import ClientState, RoundSpec, client, messages, survivors_sha256
from fedattn.secagg.messages import (
    Advertisement,
    Confirmation,
    ConfirmationList,
    KeyList,
    Kind,
    Mailbox,
    MaskedVector,
    Notice,
    Packets,
    RevealedShares,
    SurvivorList,
)
from fedattn.secagg.wire import Stage
from tests.secagg.harness import STATEMENT, Round, make_spec
from tests.secagg.test_client_checks import RNG

R = Round(make_spec(3, 2), gone={Stage.UPLOAD: {3}})
R.run()
SPARSE = Round(make_spec(6, 4, degree=3, share_threshold=2), gone={Stage.UPLOAD: {3}})
SPARSE.run()
H, K, S, PACKET = b"h" * 32, b"k" * 32, b"s" * 64, b"p" * 94
BODIES = [
    Advertisement(K, H, H, (2, 5)),
    KeyList((b"one", b"", b"three")),
    Packets(((1, PACKET), (3, PACKET))),
    Mailbox((1, 2), ((2, PACKET),)),
    SurvivorList((1, 4)),
    Confirmation(H, K, S),
    ConfirmationList(H, K, ((1, S), (9, S))),
    ConfirmationList(H, K, ((1, S),), (Notice(2, (), S), Notice(4, (7, 9), S))),
    RevealedShares(((1, Kind.SELF_SEED, 7), (2, Kind.MASK_KEY, 2**257 - 94))),
]
DECODERS = [type(body).decode for body in BODIES] + [
    MaskedVector.decode,
    RoundSpec.from_bytes,
    ClientState.from_bytes,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_every_body_decodes_to_itself_and_refuses_trailing_or_missing_bytes(body):
    data = body.encode()
    assert type(body).decode(data) == body
    for bad in (data + b"\0", data[:-1], b""):
        with pytest.raises(ProtocolError) as caught:
            type(body).decode(bad)
        assert caught.value.check == "decode"


@pytest.mark.parametrize(("bits", "size"), [(8, 2), (16, 2), (17, 4), (32, 4)])
def test_words_travel_little_endian_in_two_or_four_bytes(bits, size):
    words = np.arange(3, dtype=messages.word_type(bits)) + 1
    data = b"".join(MaskedVector(bits, words).encode())
    assert data[:5] == bytes([bits, 0, 0, 0, 3])
    assert data[5:] == b"".join(i.to_bytes(size, "little") for i in (1, 2, 3))
    decoded = MaskedVector.decode(data)
    assert decoded.modulus_bits == bits
    assert decoded.words.tolist() == [1, 2, 3]
    for bad in (data + b"\0", data[:-1], b"\x07" + data[1:], b"\x21" + data[1:]):
        with pytest.raises(ProtocolError, match="decode"):
            MaskedVector.decode(bad)
    notice = Notice(3, (1, 4), S)
    data = b"".join(MaskedVector(bits, words, notice).encode())
    assert MaskedVector.decode(data).notice == notice
    for bad in (data + b"\0", data[:-1]):
        with pytest.raises(ProtocolError, match="decode"):
            MaskedVector.decode(bad)


def test_an_unknown_kind_of_share_is_refused():
    data = bytearray(RevealedShares(((1, Kind.SELF_SEED, 7),)).encode())
    data[8] = 3
    with pytest.raises(ProtocolError, match="decode: no such kind"):
        RevealedShares.decode(bytes(data))


def decodes_or_names_the_error(decode, data):
    check = "decode"
    try:
        decode(data)
    except ProtocolError as error:
        check = error.check
    assert check == "decode" or check.startswith("spec.")


@given(st.sampled_from(DECODERS), st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_decoding_garbage_raises_a_named_error_and_nothing_else(decode, data):
    decodes_or_names_the_error(decode, data)


def client_steps(r):
    return {
        Stage.SHARE: (r.key_lists[1], lambda s, k, m: client.share(s, k, m, RNG)),
        Stage.UPLOAD: (r.mailboxes[1], lambda s, k, m: client.upload(s, k, m, r.vectors[1])),
        Stage.CONFIRM: (r.survivors, lambda s, k, m: client.confirm(s, k, m, STATEMENT)),
        Stage.UNMASK: (r.confirmation_lists[1], client.unmask),
    }


@st.composite
def mutations(draw, data):
    """`data` with one byte changed, cut, or bytes put in."""
    at = draw(st.integers(0, len(data) - 1))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "append"]))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    extra = draw(st.binary(min_size=1, max_size=8))
    return data + extra if kind == "append" else data[:at] + extra + data[at:]


@given(st.data(), st.sampled_from([R, SPARSE]), st.sampled_from(list(Stage)[1:5]))
@settings(max_examples=500, deadline=None)
def test_a_mutated_message_from_the_server_is_refused_by_name_or_changes_no_check(data, r, stage):
    message, step = client_steps(r)[stage]
    bad = data.draw(st.one_of(mutations(message), st.binary(max_size=200)))
    state = r.state(stage, 1)
    try:
        after, reply = step(state, r.keys[1], bad)
    except ProtocolError:
        return
    assert after.next_stage == stage + 1
    if stage == Stage.CONFIRM and bad != message:
        # another list that is possible for us: we sign that one, and no quorum will join us
        assert after.survivors != tuple(r.server.survivor_indices)
        assert survivors_sha256(after.survivors) in reply
        return
    # else it passes in two ways alone: the same bytes put in, or a packet that no longer opens
    assert bad == message or stage == Stage.UPLOAD


@given(st.data(), st.sampled_from([R, SPARSE]), st.sampled_from(list(Stage)[:5]))
@settings(max_examples=200, deadline=None)
def test_a_mutated_message_from_a_client_is_refused_by_name(data, recorded, stage):
    message = recorded.sent[stage, 1]
    bad = data.draw(st.one_of(mutations(message), st.binary(max_size=200)))
    if bad == message:
        return
    r = Round(recorded.spec, gone={stage: {1}}).until(stage)
    getattr(r, stage.name.lower())()
    accept = {
        Stage.ADVERTISE: lambda m: r.server.advertised(1, m),
        Stage.SHARE: lambda m: r.server.shared(1, m),
        Stage.UPLOAD: lambda m: r.server.uploaded(1, m),
        Stage.CONFIRM: lambda m: r.server.confirmed(1, m, STATEMENT),
        Stage.UNMASK: lambda m: r.server.revealed(1, m),
    }[stage]
    with pytest.raises(ProtocolError):
        accept(bad)


@given(st.data(), st.sampled_from([R, SPARSE]), st.sampled_from(list(Stage)[1:5]))
@settings(max_examples=150, deadline=None)
def test_a_mutated_state_decodes_or_is_refused_by_name(data, r, stage):
    stored = r.state(stage, 1).to_bytes()
    decodes_or_names_the_error(ClientState.from_bytes, data.draw(mutations(stored)))


def test_a_list_that_claims_too_much_is_refused_before_it_is_read():
    claims = b"\xff\xff\xff\xff"
    for decode in (KeyList.decode, Packets.decode, SurvivorList.decode, RevealedShares.decode):
        with pytest.raises(ProtocolError, match="decode"):
            decode(claims + bytes(100))
    with pytest.raises(ProtocolError, match="decode"):
        MaskedVector.decode(b"\x20" + claims + bytes(100))
