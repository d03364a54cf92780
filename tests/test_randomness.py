"""Streams are reproducible from a seed, independent by label, uniform, normal, and secret."""

from __future__ import annotations

import hashlib
import hmac
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fedattn.randomness import Randomness


def slow_key(secret: bytes, *labels: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) of one output block, from HMAC alone."""
    info = b"fedattn/v1/randomness"
    for label in labels:
        info += len(label.encode()).to_bytes(4, "big") + label.encode()
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def slow_stream(key: bytes, n: int) -> bytes:
    """AES-256 of the counters 0, 1, 2, ..."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = (ecb.update(i.to_bytes(16, "big")) for i in range(n // 16 + 1))
    return b"".join(blocks)[:n]


def test_zero_key_gives_the_block_that_every_aes_gives():
    # AES-256 of the zero block under the zero key
    zero = Randomness(bytes(32), is_seeded=True)
    assert zero.bytes(16).hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize(
    ("seed", "labels", "first", "child"),
    [
        (0, (), "7a0e806db854fcdbcd60bcc4cae81fc7", "23177290c7f25c56"),
        (7, ("noise",), "72a4d78da2403b027c604023ad922493", "9b991547d9a0f371"),
        (-1, ("a", "bc"), "8cdeaed621091c5128a0acf4f90131f8", "cd636650a3869c86"),
    ],
)
def test_recorded_bytes_never_change(seed, labels, first, child):
    stream = Randomness.seeded(seed, *labels)
    assert stream.bytes(16).hex() == first
    assert stream.child("x").bytes(8).hex() == child


@given(
    st.integers(-(2**200), 2**200),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=3),
    st.integers(0, 70),
)
def test_seeded_stream_is_hkdf_then_aes_ctr(seed, labels, n):
    key = slow_key(seed.to_bytes(32, "big", signed=True), "seed", *labels)
    stream = Randomness.seeded(seed, *labels)
    assert stream.bytes(n) == slow_stream(key, n)
    child = slow_key(key, "child", *labels)
    assert stream.child(*labels).bytes(n) == slow_stream(child, n)


@given(st.lists(st.integers(0, 40), max_size=6))
def test_how_a_stream_is_cut_does_not_change_it(sizes):
    cut, whole = Randomness.seeded(1), Randomness.seeded(1)
    assert b"".join(cut.bytes(n) for n in sizes) == whole.bytes(sum(sizes))


def test_words_are_the_bytes_in_little_endian_across_chunks():
    n = (1 << 15) + 3  # one chunk of 256 KB and three words
    expected = np.frombuffer(Randomness.seeded(2).bytes(8 * n), "<u8")
    assert np.array_equal(Randomness.seeded(2).words(n), expected)
    assert Randomness.seeded(2).words(0).size == 0


def test_labels_cannot_be_joined_or_moved():
    names = [("ab",), ("a", "b"), ("b", "a"), ("", "ab"), ("ab", ""), ()]
    firsts = {Randomness.seeded(0, *name).bytes(16) for name in names}
    firsts |= {Randomness.seeded(0).child(*name).bytes(16) for name in names}
    assert len(firsts) == 2 * len(names)


def test_children_are_independent_of_each_other_and_of_what_was_read():
    parent = Randomness.seeded(3)
    early = parent.child("x").uniform(4000)
    parent.bytes(100)
    assert np.array_equal(parent.child("x").uniform(4000), early)
    for other in (parent.child("y").uniform(4000), Randomness.seeded(3).uniform(4000)):
        assert abs(np.corrcoef(early, other)[0, 1]) < 5 / math.sqrt(4000)


def test_os_streams_differ_and_so_do_their_children():
    stream = Randomness.from_os()
    assert not stream.is_seeded
    assert not stream.child("x").is_seeded
    streams = [Randomness.from_os(), stream, stream.child("x"), stream.child("x")]
    assert len({s.bytes(16) for s in streams}) == 4


def test_repr_omits_the_key():
    stream = Randomness(b"\xaa" * 32, is_seeded=True)
    assert repr(stream) == "Randomness(key=<omitted>, is_seeded=True)"
    assert f"{stream}" == repr(stream)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_key_must_have_32_bytes(size):
    with pytest.raises(ValueError, match=f"{size} bytes, must have 32"):
        Randomness(bytes(size), is_seeded=True)


def test_uniform_lies_in_the_unit_interval_and_is_uniform():
    n = 100_000
    values = Randomness.seeded(4).uniform(n)
    assert values.min() >= 0
    assert values.max() < 1
    assert np.array_equal(values * 2.0**53, np.floor(values * 2.0**53))
    # Kolmogorov-Smirnov: sqrt(n) times the largest gap passes 2 with probability 7e-4
    gap = np.abs(np.sort(values) - (np.arange(n) + 0.5) / n).max()
    assert gap * math.sqrt(n) < 2


def test_largest_word_is_still_below_one(monkeypatch):
    stream = Randomness.seeded(0)
    monkeypatch.setattr(stream, "words", lambda n: np.full(n, 2**64 - 1, np.uint64))
    assert stream.uniform(1)[0] == 1 - 2.0**-53


@given(st.integers(1, 2**64), st.integers(0, 2**32))
def test_below_is_in_range(bound, seed):
    assert 0 <= Randomness.seeded(seed).below(bound) < bound


@pytest.mark.parametrize("bound", [0, -1, 2**64 + 1])
def test_below_refuses_what_a_word_cannot_hold(bound):
    with pytest.raises(ValueError, match=r"must be in 1\.\.2\^64"):
        Randomness.seeded(0).below(bound)


def test_below_is_unbiased_for_a_small_bound():
    stream, n = Randomness.seeded(5), 12_000
    counts = np.bincount([stream.below(6) for _ in range(n)], minlength=6)
    assert ((counts - n / 6) ** 2 / (n / 6)).sum() < 25.7  # chi-square, 5 degrees: 1e-4


def test_below_has_no_modulo_bias():
    # Reducing words modulo 3 * 2^62 would put half of all results below 2^62, not a third.
    stream, n = Randomness.seeded(6), 6000
    low = sum(stream.below(3 << 62) < 1 << 62 for _ in range(n))
    assert abs(low - n / 3) < 5 * math.sqrt(n * 2 / 9)
