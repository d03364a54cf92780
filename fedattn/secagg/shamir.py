"""Shamir's secret sharing over the prime field of P = 2^257 - 93.

P is the largest prime below 2^257, so every 32-byte secret is one field element (a prime below
2^256 would need two, or lose secrets) and a share takes 33 bytes; 2^521 - 1 would take 66.
Fewer than t shares are consistent with every secret, equally often. Shamir 1979, "How to share
a secret"; Bonawitz et al. 2017, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from operator import mul

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg.checks import require

P = 2**257 - 93
SECRET_BYTES = 32
SHARE_BYTES = 33
_STEPS_PER_REDUCTION = 16


def encode_share(share: int) -> bytes:
    """33 bytes, big-endian."""
    return share.to_bytes(SHARE_BYTES, "big")


def decode_share(data: bytes) -> int:
    """Inverse of `encode_share`; ProtocolError("decode") unless 33 bytes and below P."""
    share = int.from_bytes(data, "big")
    require(len(data) == SHARE_BYTES and share < P, "decode", "a share must be below the prime")
    return share


def split(
    secret: bytes, threshold: int, xs: Sequence[int], randomness: Randomness
) -> dict[int, int]:
    """The shares {x: f(x)} of a 32-byte `secret` = f(0), where deg f = threshold - 1.

    Coefficients are uniform in the field, by rejection. Raises ProtocolError("shamir.x") for an x
    that is repeated or outside 1..P-1, ("shamir.threshold") unless 1 <= threshold <= len(xs).
    """
    _require_xs(xs)
    require(1 <= threshold <= len(xs), "shamir.threshold", f"must be in 1..{len(xs)}")
    require(len(secret) == SECRET_BYTES, "shamir.secret", "must have 32 bytes")
    coefficients = [_element(randomness) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))  # highest degree first
    return {x: _evaluate(coefficients, x) for x in xs}


def combine(shares: Mapping[int, int]) -> bytes | None:
    """f(0) of the polynomial through exactly these shares {x: f(x)}, as 32 bytes.

    None if it is not below 2^256: some share is then wrong, for no secret is that large. Raises
    ProtocolError("shamir.x") for an x outside 1..P-1.
    """
    xs = tuple(shares)
    _require_xs(xs)
    secret = sum(map(mul, _weights_at_zero(xs), shares.values())) % P
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 1 << 256 else None


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    """Horner's rule; x is a member's index, so reducing once in many steps is cheaper."""
    value = 0
    for start in range(0, len(coefficients), _STEPS_PER_REDUCTION):
        for coefficient in coefficients[start : start + _STEPS_PER_REDUCTION]:
            value = value * x + coefficient
        value %= P
    return value


def _element(randomness: Randomness) -> int:
    """Uniform on 0..P-1: 257 bits, rejected with probability 93 / 2^257."""
    while True:
        value = int.from_bytes(randomness.bytes(SHARE_BYTES), "big") >> 7
        if value < P:
            return value


@lru_cache(maxsize=64)
def _weights_at_zero(xs: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights: prod over j != i of x_j / (x_j - x_i). Of public indices, so cacheable."""
    # products of small integers are reduced once, and all denominators share one inversion
    top = prod(xs)
    bottoms = [x_i * prod(x_j - x_i for x_j in xs if x_j != x_i) % P for x_i in xs]
    return tuple(top * inverse % P for inverse in _inverses(bottoms))


def _inverses(values: Sequence[int]) -> list[int]:
    """Every value's inverse modulo P, for one inversion and 3n products (Montgomery 1987)."""
    before = [1]
    for value in values:
        before.append(before[-1] * value % P)
    rest = pow(before.pop(), -1, P)
    inverses = []
    for value, product in zip(reversed(values), reversed(before), strict=True):
        inverses.append(rest * product % P)
        rest = rest * value % P
    return inverses[::-1]


def _require_xs(xs: Sequence[int]) -> None:
    # (1) f(0) is the secret itself; (2) a repeated x is one share counted twice
    if not all(0 < x < P for x in xs) or len(set(xs)) != len(xs):
        raise ProtocolError("shamir.x", "x coordinates must be distinct and in 1..P-1")
