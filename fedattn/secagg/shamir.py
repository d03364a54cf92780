"""Shamir's secret sharing over the prime field of P = 2^257 - 93.

P is the largest prime below 2^257, so every 32-byte secret is one field element (a prime below
2^256 would need two, or lose secrets) and a share takes 33 bytes; 2^521 - 1 would take 66.
Fewer than t shares are consistent with every secret, equally often. Shamir 1979, "How to share
a secret"; Bonawitz et al. 2017, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg.checks import require

P = 2**257 - 93
SECRET_BYTES = 32
SHARE_BYTES = 33


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
    secret = sum(w * shares[x] for w, x in zip(_weights_at_zero(xs), xs, strict=True)) % P
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 1 << 256 else None


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % P
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
    weights = []
    for i, x_i in enumerate(xs):
        numerator, denominator = 1, 1
        for j, x_j in enumerate(xs):
            if j != i:
                numerator = numerator * x_j % P
                denominator = denominator * (x_j - x_i) % P
        weights.append(numerator * pow(denominator, -1, P) % P)
    return tuple(weights)


def _require_xs(xs: Sequence[int]) -> None:
    # (1) f(0) is the secret itself; (2) a repeated x is one share counted twice
    if not all(0 < x < P for x in xs) or len(set(xs)) != len(xs):
        raise ProtocolError("shamir.x", "x coordinates must be distinct and in 1..P-1")
