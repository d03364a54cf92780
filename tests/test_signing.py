"""A signature holds for one key, one purpose and the exact bytes, and keys stay secret."""

from __future__ import annotations

import hashlib
import stat
from functools import lru_cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from fedattn import signing
from fedattn.errors import RunError
from fedattn.randomness import Randomness
from fedattn.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, SigningKey, fingerprint, verify

# RFC 8032, section 7.1, test 1
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PURPOSE = b"fedattn/v1/test"
KEY = SigningKey(SECRET)
PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8)


def test_public_key_is_that_of_rfc_8032():
    assert KEY.public_bytes == PUBLIC
    assert len(PUBLIC) == PUBLIC_KEY_BYTES


def test_recorded_signature_never_changes():
    signature = KEY.sign(PURPOSE, b"data")
    assert len(signature) == SIGNATURE_BYTES
    assert signature.hex() == (
        "74a1c48faa61516e229b410cdb6416a30e35ff4e702728c69b154d022a0878f2"
        "5644e2ff4e31934d3ff0458196db399a470723d46227d2beeef3e2dd406bb805"
    )


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_signature_is_ed25519_of_length_purpose_and_data(purpose, data):
    message = len(purpose).to_bytes(2, "big") + purpose + data
    signature = KEY.sign(purpose, data)
    assert signature == Ed25519PrivateKey.from_private_bytes(SECRET).sign(message)
    assert verify(PUBLIC, purpose, data, signature)


@given(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=20), st.data())
def test_any_changed_bit_breaks_a_signature(purpose, data, draw):
    parts = [PUBLIC, purpose, data, KEY.sign(purpose, data)]
    which = draw.draw(st.integers(0, 3))
    bit = draw.draw(st.integers(0, 8 * len(parts[which]) - 1))
    changed = bytearray(parts[which])
    changed[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(changed)
    assert not verify(*parts)


@given(st.binary(max_size=8), st.binary(min_size=1, max_size=8), st.binary(max_size=8))
def test_bytes_cannot_move_between_purpose_and_data(left, middle, right):
    assert not verify(PUBLIC, left, middle + right, KEY.sign(left + middle, right))


@pytest.fixture
def remembered(monkeypatch):
    """The memory of verified messages, of four and empty."""
    few = lru_cache(maxsize=4)(signing._require_valid)
    monkeypatch.setattr(signing, "_remembered", few)
    return few


def test_a_forged_signature_is_refused_though_a_true_one_was_seen(remembered):
    signature = KEY.sign(PURPOSE, b"data")
    other = SigningKey.generate(Randomness.seeded(2, "other"))
    for _ in range(2):
        assert verify(PUBLIC, PURPOSE, b"data", signature)
        assert not verify(PUBLIC, PURPOSE, b"data", signature[:-1] + b"\0")
        assert not verify(PUBLIC, PURPOSE, b"data", other.sign(PURPOSE, b"data"))
        assert not verify(PUBLIC, PURPOSE, b"date", signature)
        assert not verify(PUBLIC, PURPOSE + b"2", b"data", signature)
        assert not verify(other.public_bytes, PURPOSE, b"data", signature)
    assert remembered.cache_info().currsize == remembered.cache_info().hits == 1


def test_what_did_not_verify_is_not_remembered_and_what_did_is_verified_once(remembered):
    for _ in range(3):
        assert not verify(PUBLIC, PURPOSE, b"data", bytes(SIGNATURE_BYTES))
    assert remembered.cache_info().currsize == 0
    signature = KEY.sign(PURPOSE, b"data")
    assert all(verify(PUBLIC, PURPOSE, b"data", signature) for _ in range(3))
    assert remembered.cache_info().hits == 2


def test_memory_is_bounded_and_what_was_forgotten_is_verified_again(remembered):
    pairs = [(bytes([i]), KEY.sign(PURPOSE, bytes([i]))) for i in range(9)]
    for _ in range(2):
        for data, signature in pairs:
            assert verify(PUBLIC, PURPOSE, data, signature)
            assert not verify(PUBLIC, PURPOSE, data + b"!", signature)
    assert remembered.cache_info().currsize == 4
    long = bytes(signing.REMEMBERED_BYTES)
    assert verify(PUBLIC, PURPOSE, long, KEY.sign(PURPOSE, long))
    assert not verify(PUBLIC, PURPOSE, long, KEY.sign(PURPOSE, long + b"!"))
    assert not remembered.cache_info().hits
    assert signing._remembered is remembered


@pytest.mark.parametrize("size", [4, 2 * signing.REMEMBERED_BYTES])
@pytest.mark.parametrize(
    "buffer", [bytearray, memoryview, lambda data: memoryview(bytearray(data))]
)
def test_any_buffer_of_bytes_verifies_as_its_bytes_do(buffer, size):
    data = b"d" * size
    parts = [PUBLIC, PURPOSE, data, KEY.sign(PURPOSE, data)]
    forged = [*parts[:3], bytes(SIGNATURE_BYTES)]
    for place in range(4):
        for signed, answer in ((parts, True), (forged, False)):
            assert verify(*signed[:place], buffer(signed[place]), *signed[place + 1 :]) is answer


@pytest.mark.parametrize("size", [0, 31, 33])
def test_key_or_signature_of_wrong_length_verifies_nothing(size):
    signature = KEY.sign(PURPOSE, b"")
    assert not verify(bytes(size), PURPOSE, b"", signature)
    assert not verify(PUBLIC, PURPOSE, b"", signature[:size])
    assert not verify(PUBLIC, PURPOSE, b"", signature + b"\0")


def test_key_survives_the_disk_and_its_owner_alone_reads_it(tmp_path):
    path = tmp_path / "key.pem"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).sign(PURPOSE, b"x") == KEY.sign(PURPOSE, b"x")


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "key.pem"
    path.write_text("precious")
    with pytest.raises(RunError, match="never overwritten"):
        KEY.save(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an unencrypted PEM"),
        (b"\xff not a key", "not an unencrypted PEM"),
        (ec.generate_private_key(ec.SECP256R1()).private_bytes(*PKCS8, NoEncryption()), "Ed25519"),
        (x25519.X25519PrivateKey.generate().private_bytes(*PKCS8, NoEncryption()), "Ed25519"),
        (
            Ed25519PrivateKey.generate().private_bytes(*PKCS8, BestAvailableEncryption(b"pw")),
            "not an unencrypted PEM",
        ),
    ],
    ids=["empty", "garbage", "nist", "x25519", "encrypted"],
)
def test_what_is_no_plain_ed25519_key_is_refused_without_its_text(tmp_path, content, message):
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        SigningKey.load(path)
    assert caught.value.__cause__ is None
    assert "PRIVATE KEY-----" not in str(caught.value)


def test_missing_key_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(RunError, match="fedattn keys new"):
        SigningKey.load(tmp_path / "none.pem")
    with pytest.raises(RunError, match="not an unencrypted PEM"):
        SigningKey.load(tmp_path)


def test_repr_shows_the_fingerprint_and_omits_the_secret():
    shown = repr(KEY)
    assert "<omitted>" in shown
    assert fingerprint(PUBLIC) in shown
    assert SECRET.hex() not in shown


def test_fingerprint_is_sha256_of_the_raw_key():
    assert fingerprint(PUBLIC) == hashlib.sha256(PUBLIC).hexdigest()


def test_generated_key_depends_on_its_stream_alone():
    twins = [SigningKey.generate(Randomness.seeded(1)) for _ in range(2)]
    assert twins[0].public_bytes == twins[1].public_bytes
    fresh = {SigningKey.generate(Randomness.from_os()).public_bytes for _ in range(3)}
    assert len(fresh) == 3
