"""Encode, add modulo 2^b, decode: the error bound, unbiased rounding, a sum that never wraps."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedattn.errors import UpdateError
from fedattn.randomness import Randomness
from fedattn.update import Codec

BITS = [8, 12, 16, 20, 32]
ANY_FLOAT = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38])


def clipped(values: list[float], r: float) -> np.ndarray:
    """What is encoded: NaN as 0, the rest cut to [-r, r]."""
    return np.array([0.0 if math.isnan(v) else max(-r, min(r, v)) for v in values])


def mod_sum(vectors: list[np.ndarray], bits: int = 32) -> np.ndarray:
    """Addition modulo 2^bits, in Python's integers."""
    columns = zip(*(vector.tolist() for vector in vectors), strict=True)
    return np.array([sum(column) % 2**bits for column in columns], np.uint32)


@given(
    st.integers(1, 9),
    st.floats(1e-3, 1e3),
    st.floats(1e-2, 1e5),
    st.lists(ANY_FLOAT, min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
@example(3, 0.5, 1048576.0, [math.nan, math.inf, -math.inf, 3e38, 0.5], None)
def test_decoded_mean_is_within_one_grid_step_of_the_clipped_mean(n, r, s, values, rng):
    codec = Codec(r, s)
    vectors = []
    for _ in range(n):
        vectors.append(list(values))
        if rng is not None:
            rng.shuffle(vectors[-1])
    encoded = [
        codec.encode(np.array(vector, np.float32), Randomness.seeded(i))
        for i, vector in enumerate(vectors)
    ]
    exact = np.mean([clipped(np.float32(vector).tolist(), r) for vector in vectors], axis=0)
    error = np.abs(codec.decode_mean(mod_sum(encoded), n).astype(np.float64) - exact)
    # the mean leaves as float32: half a unit in its last place comes on top
    assert (error <= (1 / s) * (1 + 1e-9) + np.abs(exact) * 2.0**-23 + r * 2.0**-40).all()


@given(
    st.sampled_from(BITS),
    st.integers(1, 9),
    st.floats(1e-3, 1e3),
    st.floats(0.01, 1),
    st.lists(ANY_FLOAT, min_size=9, max_size=9),
)
@example(8, 9, 1.0, 1.0, [math.nan, math.inf, -math.inf, 3e38, 0.5, 1.0, 1.0, 1.0, 1.0])
@example(16, 9, 1.0, 1.0, [math.inf] * 9)
@example(16, 9, 1.0, 1.0, [-math.inf] * 9)
def test_the_error_bound_does_not_depend_on_the_modulus(bits, n, r, fill, values):
    steps = ((2 ** (bits - 1) - 1) // n - 1) * fill  # r s: up to the largest sum that fits
    codec = Codec(r, max(steps, 0.5) / r, bits)
    codec.check_no_wrap(n)
    encoded = [
        codec.encode(np.array([value]), Randomness.seeded(i)) for i, value in enumerate(values[:n])
    ]
    assert all(words.dtype == np.uint32 and words.max() < 2**bits for words in encoded)
    exact = clipped(values[:n], r).mean()
    error = abs(float(codec.decode_mean(mod_sum(encoded, bits), n)[0]) - exact)
    assert error <= 1 / codec.grid_scale * (1 + 1e-9) + r * 2.0**-40


@pytest.mark.parametrize("bits", BITS)
def test_decoding_reads_words_as_signed_and_looks_at_the_modulus_alone(bits):
    codec, top = Codec(1.0, 2.0 ** (bits - 1) - 2, bits), 2 ** (bits - 1) - 1
    signed = np.array([0, 1, -1, top, -top])
    words = (signed % 2**bits).astype(np.uint32)
    assert np.allclose(codec.decode_mean(words, 1) * codec.grid_scale, signed, rtol=1e-12)
    above = words + np.uint32(2**bits % 2**32)  # a multiple of the modulus more
    assert np.array_equal(codec.decode_mean(above, 1), codec.decode_mean(words, 1))


@pytest.mark.parametrize("bits", BITS)
def test_fewer_bits_carry_the_same_values(bits):
    codec, wide = Codec(1.0, 60.0, bits), Codec(1.0, 60.0)
    delta = np.linspace(-1.5, 1.5, 1001)
    words = codec.encode(delta, Randomness.seeded(5))
    again = wide.encode(delta, Randomness.seeded(5))
    assert np.array_equal(words, again & np.uint32(2**bits - 1))
    assert np.array_equal(codec.decode_mean(words, 2), wide.decode_mean(again, 2))


@pytest.mark.parametrize("bits", [7, 33, 0, -1])
def test_a_modulus_that_no_round_adds_in_is_refused(bits):
    with pytest.raises(UpdateError, match=rf"modulus_bits is {bits}, must be in 8\.\.32"):
        Codec(1.0, 1.0, bits)


def test_the_stated_bound_holds_on_a_fine_grid_too():
    codec, x = Codec(0.5, 2.0**30), 1 / 3
    mean = codec.decode_mean(codec.encode(np.array([x]), Randomness.seeded(0)), 1)
    assert abs(float(mean[0]) - x) < 2.0**-30


def test_values_on_the_grid_come_back_exactly():
    codec, grid = Codec(1.0, 64.0), np.arange(-64, 65) / 64
    words = codec.encode(grid, Randomness.from_os())
    assert np.array_equal(words.view(np.int32), np.arange(-64, 65))
    assert np.array_equal(codec.decode_mean(words, 1), grid)


@pytest.mark.parametrize("value", [0.3, -0.3, 0.01, -0.999, 0.9999])
def test_rounding_is_unbiased_and_reaches_the_two_neighbours_alone(value):
    codec, n = Codec(10.0, 3.0), 200_000
    words = codec.encode(np.full(n, value), Randomness.seeded(1)).view(np.int32)
    low = math.floor(3 * value)
    assert set(words.tolist()) <= {low, low + 1}
    p = 3 * value - low
    assert abs(words.mean() - 3 * value) < 5 * math.sqrt(p * (1 - p) / n)


def test_coordinates_round_independently_and_by_the_given_stream_alone():
    codec, half = Codec(1.0, 1.0), np.full(10_000, 0.5)
    first = codec.encode(half, Randomness.seeded(1)).view(np.int32)
    again = codec.encode(half, Randomness.seeded(1)).view(np.int32)
    other = codec.encode(half, Randomness.seeded(2)).view(np.int32)
    assert np.array_equal(first, again)
    for a, b in [(first, other), (first[:-1], first[1:])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(10_000)


def test_a_long_vector_is_encoded_as_its_chunks_are():
    codec, n = Codec(1.0, 1000.0), (1 << 18) + 5
    delta = np.linspace(-1, 1, n)
    signed = codec.encode(delta, Randomness.seeded(3)).view(np.int32)
    assert np.abs(signed - delta * 1000).max() < 1


@pytest.mark.parametrize(
    ("clients", "grid_scale"), [(1, 2**31 - 2.5), (4, 2**29 - 1.5), (7, 2**31 / 7 - 3)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_does_not_wrap(clients, grid_scale, sign):
    codec = Codec(1.0, grid_scale)
    codec.check_no_wrap(clients)
    one = codec.encode(np.full(50, sign * math.inf), Randomness.seeded(4))
    mean = codec.decode_mean(mod_sum([one] * clients), clients)
    assert np.allclose(mean, sign, rtol=1e-6)


@given(st.sampled_from(BITS), st.integers(1, 10_000), st.floats(1e-6, 1e6), st.floats(1e-6, 1e12))
def test_a_codec_is_refused_exactly_if_its_extreme_sum_leaves_the_signed_word(bits, n, r, s):
    largest = n * (math.floor(r * s) + 1)
    if largest < 2 ** (bits - 1):
        Codec(r, s, bits).check_no_wrap(n)
    else:
        text = rf"below 2\^{bits - 1} = .*lower grid_scale or clip_range"
        with pytest.raises(UpdateError, match=text):
            Codec(r, s, bits).check_no_wrap(n)
        with pytest.raises(UpdateError):
            Codec(r, s, bits).decode_mean(np.zeros(1, np.uint32), n)


@pytest.mark.parametrize("sign", [1, -1])
def test_decode_refuses_a_coordinate_beyond_the_bound(sign):
    codec, clients = Codec(1.0, 10.0), 3
    edge = np.array([0, sign * 33], np.int32)
    assert np.isclose(codec.decode_mean(edge.view(np.uint32), clients)[1], sign * 1.1)
    beyond = np.array([0, sign * 34], np.int32)
    with pytest.raises(UpdateError, match="outside the range"):
        codec.decode_mean(beyond.view(np.uint32), clients)


@pytest.mark.parametrize("clients", [0, -1])
def test_decode_refuses_an_empty_cohort(clients):
    with pytest.raises(UpdateError, match="at least 1"):
        Codec(1.0, 1.0).decode_mean(np.zeros(1, np.uint32), clients)


def test_encode_refuses_what_is_no_vector_and_takes_an_empty_one():
    with pytest.raises(UpdateError, match="2 dimensions"):
        Codec(1.0, 1.0).encode(np.zeros((2, 2)), Randomness.seeded(0))
    empty = Codec(1.0, 1.0).encode(np.zeros(0), Randomness.seeded(0))
    assert Codec(1.0, 1.0).decode_mean(empty, 2).shape == (0,)


def test_decoding_a_long_vector_takes_its_result_and_one_chunk():
    d = 1 << 20
    codec, total = Codec(1.0, 10.0, 16), np.ones(d, np.uint32)
    codec.decode_mean(total[:10], 1)
    tracemalloc.start()
    codec.decode_mean(total, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * d + (1 << 21)


def test_encode_leaves_its_input_alone():
    delta = np.array([math.nan, 5.0, 0.1])
    Codec(1.0, 3.0).encode(delta, Randomness.seeded(0))
    assert np.array_equal(delta, [math.nan, 5.0, 0.1], equal_nan=True)
