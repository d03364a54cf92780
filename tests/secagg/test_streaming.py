"""What a round costs the server in memory, and that threads change nothing but the time."""

import tracemalloc

import numpy as np
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedattn.secagg import client, graph, keys
from fedattn.secagg.prg import CHUNK_BYTES, add_masks, reduce_words
from fedattn.secagg.wire import Stage
from tests.secagg.harness import Round, make_spec

MASKS = [(i.to_bytes(32, "big"), 1 if i % 3 else -1) for i in range(300)]  # more than one batch


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("coordinates", [1, 5, 65_536, 131_072, 131_073, 262_147, 400_001])
def test_threads_give_the_same_sum(dtype, coordinates):
    masks = MASKS if coordinates < 70_000 else MASKS[:5]
    one = np.arange(coordinates).astype(dtype)
    many = {threads: one.copy() for threads in (2, 3, 7)}
    add_masks(one, masks)
    for threads, words in many.items():
        add_masks(words, iter(masks), threads)
        assert (words == one).all()


def test_no_masks_change_nothing():
    words = np.arange(200_000, dtype=np.uint32)
    add_masks(words, [], 2)
    assert (words == np.arange(200_000)).all()


@pytest.mark.parametrize("bits", [8, 13, 16, 17, 31, 32])
def test_words_are_reduced_in_place(bits):
    words = np.full(3, 2**16 - 1, np.uint16) if bits <= 16 else np.full(3, 2**32 - 1, np.uint32)
    reduce_words(words, bits)
    assert words.tolist() == [2**bits - 1] * 3


def test_a_round_of_many_threads_is_the_same_round():
    results = []
    for threads in (1, 3):
        r = Round(make_spec(3, 2, d=200_000), gone={Stage.UPLOAD: {3}})
        r.server._threads = threads
        results.append(r.run())
    assert (results[0] == results[1]).all()


def peak_of(call, *args):
    """Bytes that `call` holds at most, beyond what was there before; and its result."""
    tracemalloc.start()
    try:
        result = call(*args)
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_server_memory_is_a_few_vectors_for_200_members():
    n, d = 200, 200_000
    vector = 4 * d
    k, t = graph.parameters(n, 0.1, 0.1)
    r = Round(make_spec(n, 111, 20, d, degree=k, share_threshold=t), gone={Stage.UPLOAD: {7, 9}})
    one = np.full(d, 2**31, np.uint32)
    r.vectors = dict.fromkeys(r.spec.members, one)
    r.until(Stage.UPLOAD)
    assert sum(map(len, r.server._mail.values())) == n * k * 98
    most = 0
    uploaded = r.server.uploaded

    def measured(index, message):
        nonlocal most
        most = max(most, peak_of(uploaded, index, message)[0])
        r.sent[Stage.UPLOAD, index] = b""  # what a test keeps, the server does not

    r.server.uploaded = measured
    r.upload()
    assert most < 0.1 * vector  # added as it arrives, never copied
    assert set(r.server._mail) == {7, 9}  # the others have theirs
    r.confirm().unmask()
    peak, total = peak_of(r.server.total)
    # the caller's copy, a chunk of keystream a thread, the secrets; Shamir's weights
    assert peak < vector + (r.server._threads + 1) * (CHUNK_BYTES + 2**17) + 2**20
    assert (total == r.plain_sum(r.server.survivor_indices)).all()


def test_every_point_of_low_order_is_listed_and_no_other_agreement_is_refused():
    for u in keys._LOW_ORDER:
        point = X25519PublicKey.from_public_bytes(u.to_bytes(32, "little"))
        with pytest.raises((ValueError, UnsupportedAlgorithm)):
            X25519PrivateKey.from_private_bytes(b"k" * 32).exchange(point)
    for u in range(2, 40):
        point = X25519PublicKey.from_public_bytes(u.to_bytes(32, "little"))
        assert X25519PrivateKey.from_private_bytes(b"k" * 32).exchange(point) != bytes(32)
        keys.require_usable(u.to_bytes(32, "little"), 1)


def test_a_client_of_many_threads_sends_the_same_vector():
    r = Round(make_spec(3, 2, d=150_000)).until(Stage.CONFIRM)
    for threads in (2, 5):
        state = r.state(Stage.UPLOAD, 1)
        step = client.upload(state, r.keys[1], r.mailboxes[1], r.vectors[1], threads)
        assert step == (r.state(Stage.CONFIRM, 1), r.sent[Stage.UPLOAD, 1])
