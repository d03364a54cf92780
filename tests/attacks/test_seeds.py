"""Seeds that repeat, are short, or serve two purposes."""

import numpy as np
import pytest

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg import client, keys, shamir
from fedattn.secagg.wire import Stage
from tests.attacks.adversary import advert, advertised, refuses, step, with_advert, words_of
from tests.secagg.harness import Round, identities, make_spec, sha


class Counted(Randomness):
    """A stream that counts what is drawn from it."""

    def __init__(self):
        super().__init__(Randomness.from_os().bytes(32), is_seeded=False)
        self.drawn = 0

    def bytes(self, n):
        self.drawn += n
        return super().bytes(n)


def drawn_secrets(count):
    spec, identity = make_spec(), identities(4)[0]
    for _ in range(count):
        stream = Counted()
        state, _ = client.advertise(spec, 1, identity, stream)
        yield (state.mask_secret, state.transport_secret, state.self_seed), stream.drawn


def test_searching_a_32_bit_seed_space_is_hopeless():
    """Every secret takes 256 fresh bits, and no byte of any is constant or a copy."""
    found = list(drawn_secrets(64))
    assert all(drawn >= 3 * 32 for _, drawn in found)
    raw = np.array([[list(secret) for secret in secrets] for secrets, _ in found], np.uint8)
    assert raw.shape == (64, 3, 32)
    columns = raw.reshape(64, 96)
    assert min(len(set(column)) for column in columns.T) > 40  # 64 uniform draws give about 57
    flat = [secret for secrets, _ in found for secret in secrets]
    assert len({secret[:4] for secret in flat} | {secret[-4:] for secret in flat}) == 2 * len(flat)


@pytest.mark.parametrize("short", [b"", b"\x01\x02\x03\x04", bytes(31), bytes(33)])
def test_a_short_secret_is_never_shared_nor_a_short_key_used(short):
    refuses("shamir.secret", shamir.split, short, 2, [1, 2, 3], Randomness.seeded(0))
    with pytest.raises(ValueError, match="must have 32"):
        Randomness(short, is_seeded=True)


def masks_of(r, i):
    """What member `i` added to its vector."""
    return words_of(r, r.sent[Stage.UPLOAD, i], i) - r.vectors[i]


def test_randomness_repeated_in_another_round_repeats_no_mask():
    """A restored virtual machine draws the same keys again: the instruction hash is in all info."""
    first, second = (
        Round(make_spec(4, 3, d=256, instruction=sha(name))).until(Stage.CONFIRM)
        for name in ("one", "two")
    )
    for i in first.spec.members:
        assert advertised(first, i).mask_key == advertised(second, i).mask_key
        assert (masks_of(first, i) == masks_of(second, i)).sum() < 4
        packets = [r.sent[Stage.SHARE, i] for r in (first, second)]
        assert packets[0] != packets[1]


def test_randomness_repeated_by_two_clients_is_refused_and_would_repeat_no_mask(finished):
    r, spec = finished, finished.spec
    seed = bytes(range(32))
    assert keys.self_mask_key(spec.instruction_hash, 2, seed) != keys.self_mask_key(
        spec.instruction_hash, 3, seed
    )
    assert keys.seed_commitment(spec.instruction_hash, 2, seed) != keys.seed_commitment(
        spec.instruction_hash, 3, seed
    )
    _, copy = client.advertise(spec, 3, r.keys[3], r._rng(2, "advertise"))  # member 2's stream
    with pytest.raises(ProtocolError, match=r"keys\.repeated"):
        step(r, Stage.SHARE, 1, with_advert(r, 3, copy))


@pytest.mark.parametrize("purpose", ["mask_key", "transport_key"])
@pytest.mark.parametrize("copied", ["mask_key", "transport_key"])
def test_a_peer_that_copies_a_victims_key_is_refused(finished, purpose, copied):
    stolen = getattr(advertised(finished, 2), copied)
    message = advert(finished, 3, **{purpose: stolen})
    refuses("keys.repeated", step, finished, Stage.SHARE, 1, with_advert(finished, 3, message))


def test_one_agreement_gives_a_key_per_purpose_pair_direction_and_instruction(finished):
    private, public = keys.load(bytes(31) + b"\x01"), keys.public_bytes(bytes(31) + b"\x02")
    a, b = sha("a"), sha("b")
    masks = [
        keys.pairwise_mask_key(private, public, hash_, *pair)
        for hash_ in (a, b)
        for pair in ((1, 2), (1, 3), (2, 3))
    ]
    transport = [
        keys._transport_key(private, public, hash_, *pair)[0]
        for hash_ in (a, b)
        for pair in ((1, 2), (2, 1), (1, 3))
    ]
    assert len({*masks, *transport}) == len(masks) + len(transport)
