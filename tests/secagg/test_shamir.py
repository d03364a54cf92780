import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg import shamir
from fedattn.secagg.recovery import MAX_SUBSETS, Recovery


def _is_prime(n: int) -> bool:
    """Miller-Rabin with 64 fixed-seed bases: error below 2^-128."""
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    rng = random.Random(0)
    for _ in range(64):
        x = pow(rng.randrange(2, n - 1), d, n)
        if x in (1, n - 1):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_prime_is_the_largest_below_2_to_257():
    assert shamir.P > 2**256
    assert _is_prime(shamir.P)
    assert not any(_is_prime(p) for p in range(shamir.P + 2, 2**257, 2))


@given(st.data(), st.binary(min_size=32, max_size=32), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_t_shares_give_the_secret_back(data, secret, seed):
    xs = data.draw(st.lists(st.integers(1, 2**32), min_size=1, max_size=9, unique=True))
    t = data.draw(st.integers(1, len(xs)))
    shares = shamir.split(secret, t, xs, Randomness.seeded(seed))
    chosen = data.draw(st.permutations(xs))[:t]
    assert shamir.combine({x: shares[x] for x in chosen}) == secret


def test_splitting_equals_a_slow_polynomial():
    class Counting(Randomness):
        def __init__(self):
            super().__init__(bytes(32), is_seeded=True)
            self.drawn = []

        def bytes(self, n):
            out = super().bytes(n)
            self.drawn.append(int.from_bytes(out, "big") >> 7)
            return out

    rng, secret = Counting(), bytes(range(32))
    shares = shamir.split(secret, 3, [1, 2, 9], rng)
    a, b = rng.drawn
    s = int.from_bytes(secret, "big")
    assert shares == {x: (a * x**2 + b * x + s) % shamir.P for x in (1, 2, 9)}


def test_fewer_than_t_shares_are_consistent_with_every_secret_equally_often():
    # the whole space of a small field (P = 7, t = 3): for any two x, each pair of shares is met
    # exactly as often under every secret
    p, xs = 7, (1, 2, 3, 4)
    for pair in combinations(xs, 2):
        for secret in range(p):
            seen = {
                tuple((secret + a * x + b * x * x) % p for x in pair)
                for a in range(p)
                for b in range(p)
            }
            assert len(seen) == p * p


def test_fewer_than_t_shares_combine_to_something_else():
    shares = shamir.split(b"s" * 32, 4, range(1, 6), Randomness.seeded(1))
    assert shamir.combine({x: shares[x] for x in (1, 2, 3)}) != b"s" * 32


@pytest.mark.parametrize("xs", [[1, 2, 2], [0, 1, 2], [1, 2, shamir.P], [-1, 1, 2]])
def test_a_repeated_or_zero_x_is_refused(xs):
    with pytest.raises(ProtocolError, match=r"shamir\.x"):
        shamir.split(bytes(32), 2, xs, Randomness.seeded(0))
    if len(set(xs)) == 3:
        with pytest.raises(ProtocolError, match=r"shamir\.x"):
            shamir.combine(dict.fromkeys(xs, 1))


@pytest.mark.parametrize("t", [0, 4])
def test_an_impossible_threshold_is_refused(t):
    with pytest.raises(ProtocolError, match=r"shamir\.threshold"):
        shamir.split(bytes(32), t, [1, 2, 3], Randomness.seeded(0))


def test_a_secret_of_another_length_is_refused():
    with pytest.raises(ProtocolError, match=r"shamir\.secret"):
        shamir.split(bytes(31), 2, [1, 2, 3], Randomness.seeded(0))


def test_a_share_at_or_above_the_prime_is_not_decoded():
    assert shamir.decode_share(shamir.encode_share(shamir.P - 1)) == shamir.P - 1
    for bad in (shamir.encode_share(shamir.P), b"\xff" * 33, bytes(32), bytes(34)):
        with pytest.raises(ProtocolError, match="decode"):
            shamir.decode_share(bad)


@pytest.mark.parametrize("liars", list(combinations(range(1, 8), 2)))
def test_recovery_finds_any_two_liars_and_remembers_them(liars):
    secret = bytes(range(32))
    shares = shamir.split(secret, 5, range(1, 8), Randomness.seeded(3))
    lies = {x: s * (x + 1) % shamir.P if x in liars else s for x, s in shares.items()}
    recovery = Recovery(5)
    assert recovery.secret(lies, lambda s: s == secret) == secret
    assert recovery.suspects <= set(liars)
    tries = []
    assert recovery.secret(lies, lambda s: tries.append(s) or s == secret) == secret
    assert len(tries) == 1


def test_lies_that_cancel_give_the_true_secret_or_none():
    # liars who know the weights can let an innocent be suspected: it is tried last, nothing more
    secret = bytes(range(32))
    shares = shamir.split(secret, 5, range(1, 8), Randomness.seeded(3))
    for liars in combinations(range(1, 8), 2):
        lies = {x: s ^ 1 if x in liars else s for x, s in shares.items()}
        recovery = Recovery(5)
        for _ in range(3):
            assert recovery.secret(lies, lambda s: s == secret) == secret


def test_recovery_gives_up_within_its_bound():
    shares = dict.fromkeys(range(1, 31), 1)
    tries = []
    assert Recovery(20).secret(shares, lambda s: bool(tries.append(s))) is None
    assert len(tries) <= MAX_SUBSETS
    assert Recovery(31).secret(shares, lambda _: True) is None
