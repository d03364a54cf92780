"""The rotation: random signs, then blockwise Walsh-Hadamard, so that no coordinate stands out.

A vector of norm 1 may hold everything in one coordinate. On an integer grid of few bits that
coordinate would wrap around the modulus. Rotated, every coordinate is a sum of many small terms
of random sign, so a modulus sized for |x|^2 / block is enough (Kairouz, Liu and Steinke 2021,
arXiv 2102.06387, section 4; Ailon and Chazelle 2009 for the transform).

The seed is public and fresh each round. Nobody's privacy rests on it: the rotation keeps l2
distances, whatever the signs. That coordinates stay small rests on vectors that were made without
looking at it, which is a matter of utility alone.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedattn.errors import UpdateError
from fedattn.randomness import Randomness

Floats: TypeAlias = npt.NDArray[np.floating]
Doubles: TypeAlias = npt.NDArray[np.float64]

MAX_BLOCK = 1 << 16
SMALL = 1024  # up to here one block holds the vector
SEED_BYTES = 32
_PADDING = 20  # at most one padded coordinate for this many of the vector's own
_FACTOR = 4  # log2 of the largest matrix that one product applies; 3, 5 and 6 are slower
_CHUNK = 1 << 16  # coordinates: 512 KB, in and out of the second-level cache


def block_size(dimension: int) -> int:
    """The transform's block for vectors of `dimension` = d coordinates: a power of two m.

    Up to d = 1024 the next power of two, d itself if it is one: at most d - 1 coordinates of
    padding, which so short a vector can carry. Above, the largest m <= 2^16 with padding to a
    multiple of m of at most d/20; every m <= d/20 qualifies, so m > d/40 below the cap.

    >>> [block_size(d) for d in (1, 3, 1000, 5000, 1_000_000, 10_000_000)]
    [1, 4, 1024, 1024, 65536, 65536]
    """
    if dimension < 1:
        raise UpdateError(f"dimension is {dimension}, must be at least 1")
    if dimension <= SMALL:
        return 1 << (dimension - 1).bit_length()
    block = MAX_BLOCK
    while -dimension % block * _PADDING > dimension:
        block //= 2
    return block


def padded_size(dimension: int) -> int:
    """`dimension` and its padding: whole blocks.

    >>> [padded_size(d) for d in (3, 1000, 5000)]
    [4, 1024, 5120]
    """
    return dimension + -dimension % block_size(dimension)


class Rotation:
    """An orthogonal map from R^dimension into R^padded, the same for all who know `seed`.

    `forward` is W D P / sqrt(m): P appends zeros to a multiple of m = block, D flips the signs
    of coordinates by the AES-CTR stream of the seed, W is the Walsh-Hadamard matrix of order m
    (entries +1 and -1, Sylvester's order) on each block. In exact arithmetic norms and inner
    products are kept and `inverse` is the transpose, which restores what `forward` was given.
    In doubles each direction is off by at most 2^-45 |x| in l2: four products of order 16 with
    15 additions a coordinate, whatever their order, at 60 * 2^-53 each, and the scale.

    Over random signs, a coordinate of forward(x) is a sum of x_j / sqrt(m) with independent
    signs, j in its block: sub-Gaussian with variance proxy at most |x|^2 / m (Hoeffding).

    dimension: d >= 1; seed: 32 public bytes. Raises UpdateError for other sizes. Values never
    raise: NaN and infinities spread over their block, so clip first.

    >>> rotation = Rotation(3, bytes(32))
    >>> rotation.block, rotation.padded
    (4, 4)
    >>> np.round(rotation.inverse(rotation.forward(np.array([3.0, 0.0, -4.0]))), 12)
    array([ 3.,  0., -4.])
    """

    def __init__(self, dimension: int, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise UpdateError(f"seed has {len(seed)} bytes, must have {SEED_BYTES}")
        self.dimension = dimension
        self.block = block_size(dimension)
        self.padded = padded_size(dimension)
        stream = Randomness(seed, is_seeded=True).child("rotation signs")
        bits = np.frombuffer(stream.bytes(-(-dimension // 8)), np.uint8)
        self._signs = 1 - 2 * np.unpackbits(bits, count=dimension).view(np.int8)  # (dimension,)
        self._scale = self.block**-0.5
        self._matrices = _matrices(self.block)

    def forward(self, x: Floats) -> Doubles:
        """Rotate `x` (dimension,), float32 or float64, to doubles (padded,)."""
        _require_shape("x", x, self.dimension)
        y = np.zeros(self.padded)
        with np.errstate(all="ignore"):
            np.multiply(x, self._signs, out=y[: self.dimension])
            y *= self._scale
            self._transform(y)
        return y

    def inverse(self, y: Floats) -> Doubles:
        """Rotate `y` (padded,) back to (dimension,); what lies in the padding is dropped."""
        _require_shape("y", y, self.padded)
        with np.errstate(all="ignore"):
            x = np.multiply(y, self._scale, dtype=np.float64)
            self._transform(x)
            restored: Doubles = x[: self.dimension] * self._signs
        return restored

    def _transform(self, x: Doubles) -> None:
        """Multiply each block of `x` (padded,) by W, in place.

        W is the Kronecker product of small ones, each applied along its own axis of a block.
        One product of order 16 costs less than the four passes of additions it stands for.
        """
        chunk = max(_CHUNK, self.block)
        for start in range(0, x.size, chunk):
            part = x[start : start + chunk]
            stride = 1
            for matrix in self._matrices:
                order = len(matrix)
                if stride == 1:
                    part = part.reshape(-1, order) @ matrix
                else:
                    part = np.matmul(matrix, part.reshape(-1, order, stride))
                stride *= order
            x[start : start + chunk] = part.reshape(-1)


def _matrices(block: int) -> list[Doubles]:
    """Walsh-Hadamard matrices, of order 16 at most, whose Kronecker product has order `block`."""
    levels = block.bit_length() - 1
    count = -(-levels // _FACTOR)
    return [_hadamard((levels + i) // count) for i in range(count)]


def _hadamard(levels: int) -> Doubles:
    """Sylvester's matrix of order 2^levels; it is symmetric."""
    matrix = np.ones((1, 1))
    for _ in range(levels):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _require_shape(name: str, vector: Floats, size: int) -> None:
    if vector.shape != (size,):
        raise UpdateError(f"{name} has shape {vector.shape}, must have ({size},)")
