"""What a server learns from fewer than t members: nothing, shown as far as a test can.

Three parts. A mask looks uniform over many seeds. Any t - 1 shares fit every secret equally well.
And for each vector the victim could have, there are secrets with which the real client sends the
same masked bytes and gives the colluders the same shares: their view fits every vector. What ties
the view to one secret is computational: keys (Diffie-Hellman), the seed's commitment (a hash of
256 uniform bits) and packets between others (AES-GCM).
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from fedattn.randomness import Randomness
from fedattn.secagg import keys, shamir
from fedattn.secagg.prg import add_masks, pairwise_sign
from fedattn.secagg.shamir import P, combine, split
from fedattn.secagg.wire import Stage
from tests.attacks.adversary import step, words_of
from tests.secagg.harness import Round, identities, make_spec, sha


def is_uniform(counts):
    """Chi-square within six standard deviations of its mean."""
    expected, free = counts.sum() / len(counts), len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return abs(statistic - free) < 6 * (2 * free) ** 0.5


def known_masks(r, victim, colluders):
    """The sum (d,) of the victim's pairwise masks that its colluding peers can compute."""
    total = np.zeros(r.spec.dimension, r.server._sum.dtype)
    for i in colluders:
        state = r.state(Stage.UPLOAD, i)
        theirs = next(peer.mask_key for peer in state.peers if peer.index == victim)
        private = keys.load(state.mask_secret)
        key = keys.pairwise_mask_key(private, theirs, r.spec.instruction_hash, i, victim)
        add_masks(total, [(key, pairwise_sign(victim, i))])
    return total


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("opened", ["nothing", "all but one pairwise mask"])
def test_masks_are_uniform_over_many_seeds(bits, opened):
    """At worst the self mask is opened, and all peers but one tell the server theirs."""
    d, rounds = 64, 200
    words = []
    for seed in range(rounds):
        spec = make_spec(4, 4, 2, d=d, bits=bits, instruction=sha(f"round {seed}"))
        zero = {i: np.zeros(d, np.uint32) for i in spec.members}
        r = Round(spec, zero, seed=seed)
        r.keys = dict(enumerate(identities(4), 1))
        r.until(Stage.CONFIRM)
        seen = words_of(r, r.sent[Stage.UPLOAD, 1], 1).copy()
        if opened != "nothing":
            own = keys.self_mask_key(spec.instruction_hash, 1, r.state(Stage.UPLOAD, 1).self_seed)
            add_masks(seen, [(own, -1)])
            seen -= known_masks(r, 1, (3, 4))
        words.append(seen)
    raw = np.array(words)
    for low in range(0, bits, 8):
        assert is_uniform(np.bincount(((raw >> low) & 255).ravel(), minlength=256))
    # no coordinate is like its neighbour, no round like the one before
    for difference in (raw[:, 1:] - raw[:, :-1], raw[1:] - raw[:-1]):
        assert is_uniform(np.bincount((difference & 255).ravel(), minlength=256))


# ---- shares


def polynomial_through(points, xs):
    """The values at `xs` of the one polynomial through `points` {x: y}: Lagrange, by hand."""
    values = {}
    for x in xs:
        total = 0
        for i, y in points.items():
            term = y
            for j in points:
                if j != i:
                    term = term * (x - j) * pow(i - j, -1, P) % P
            total += term
        values[x] = total % P
    return values


@pytest.mark.parametrize(("n", "t"), [(3, 2), (5, 3), (7, 5)])
def test_fewer_than_t_shares_fit_every_secret(n, t):
    xs = range(1, n + 1)
    true = split(bytes(range(32)), t, list(xs), Randomness.seeded(1))
    for colluders in combinations(xs, t - 1):
        for other in (bytes(32), b"\xff" * 32, Randomness.seeded(2).bytes(32)):
            points = {0: int.from_bytes(other, "big"), **{i: true[i] for i in colluders}}
            fitting = polynomial_through(points, xs)
            assert all(fitting[i] == true[i] for i in colluders)
            for quorum in combinations(xs, t):
                assert combine({i: fitting[i] for i in quorum}) == other


def test_one_shares_bytes_are_uniform_whatever_the_secret():
    for secret in (bytes(32), b"\xff" * 32):
        drawn = [
            shamir.encode_share(split(secret, 2, [1, 2], Randomness.seeded(seed, "s"))[1])
            for seed in range(3000)
        ]
        low = np.frombuffer(b"".join(share[1:] for share in drawn), np.uint8)
        assert is_uniform(np.bincount(low, minlength=256))


# ---- the whole view, for a modulus small enough to try every vector


def seeds_by_mask(r, victim):
    """A self seed for each of the 256 one-word self masks that the victim could add."""
    found = {}
    stream = Randomness.seeded(7, "search")
    while len(found) < 256:
        seed = stream.bytes(32)
        mask = np.zeros(1, r.server._sum.dtype)
        add_masks(mask, [(keys.self_mask_key(r.spec.instruction_hash, victim, seed), 1)])
        found.setdefault(int(mask[0]) & 255, seed)
    return found


def test_the_view_of_server_and_t_minus_1_members_fits_every_vector_of_the_victim():
    n, t, victim = 4, 3, 1
    colluders = (2, 3)  # t - 1; member 4 is honest
    r = Round(make_spec(n, t, 1, d=1, bits=8)).until(Stage.CONFIRM)
    true = r.state(Stage.UPLOAD, victim)
    sent = r.sent[Stage.UPLOAD, victim]

    def share_at(i):
        """What the colluder opened from the victim's packet."""
        held = r.state(Stage.CONFIRM, i).held
        return next(shares.seed_share for shares in held if shares.owner == victim)

    seen = {i: share_at(i) for i in colluders}
    seeds = seeds_by_mask(r, victim)
    true_mask = np.zeros(1, r.server._sum.dtype)
    key = keys.self_mask_key(r.spec.instruction_hash, victim, true.self_seed)
    add_masks(true_mask, [(key, 1)])
    x = int(r.vectors[victim][0])
    fitted = []
    for candidate in range(256):
        # another vector needs another self mask, whose seed needs other shares at honest members
        seed = seeds[(int(true_mask[0]) + x - candidate) % 256]
        points = {0: int.from_bytes(seed, "big"), **seen}
        shares = polynomial_through(points, r.spec.members)
        assert all(shares[i] == seen[i] for i in colluders)
        assert combine({i: shares[i] for i in (1, 3, 4)}) == seed
        other = replace(
            true,
            self_seed=seed,
            held=(replace(true.held[0], seed_share=shares[victim]),),
        )
        vector = np.array([candidate], np.uint32)
        state, message = step(
            r, Stage.UPLOAD, victim, r.mailboxes[victim], state=other, vector=vector
        )
        assert message == sent  # the same masked word, the same signature
        fitted.append(state.next_stage)
    assert len(fitted) == 256


def test_the_masks_of_two_honest_members_hide_how_a_sum_is_split():
    """All else opened, what is left of two members' vectors is x1 + m and x2 - m."""
    spec = make_spec(4, 4, 2, d=20_000, bits=16)
    vectors = {i: np.full(20_000, 1000 * i, np.uint32) for i in spec.members}
    r = Round(spec, vectors).until(Stage.CONFIRM)
    left = {}
    for i in (1, 2):
        left[i] = words_of(r, r.sent[Stage.UPLOAD, i], i).copy()
        own = keys.self_mask_key(spec.instruction_hash, i, r.state(Stage.UPLOAD, i).self_seed)
        add_masks(left[i], [(own, -1)])
        left[i] -= known_masks(r, i, (3, 4))
        assert is_uniform(np.bincount(left[i] & 255, minlength=256))
        assert is_uniform(np.bincount(left[i] >> 8, minlength=256))
    assert set(left[1] + left[2]) == {3000}  # the sum, and nothing else
