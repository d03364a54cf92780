"""Integers distributed as round(std Z), Z standard normal, one CSPRNG word each and no rounding.

**Mixture.** The area under f(x) = exp(-x^2/2) / sqrt(2 pi) is cut into N = 2^15 slots of area 1/N.
R of them are rectangles: slot i is [-x_i, x_i] wide and Delta_i = 1 / (2 N x_i) high and stands on
the slots before it, H_i = Delta_0 + .. + Delta_i being the height of its top. All that the
construction needs is that its upper corners lie under the curve, H_i <= f(x_i): any doubles
x_0 > x_1 > .. with that property make an exact decomposition. The other N - R slots (4) stand for
what the rectangles leave, the density f - H and the tail beyond x_0. So a draw is a uniform slot,
and in 32,764 of 32,768 cases one uniform number times x_i. This is the ziggurat (Marsaglia and
Tsang 2000, doi 10.18637/jss.v005.i08) with rectangles wholly inside, so that nothing is tested and
no draw is thrown away, and with exact areas.

**One word.** Its low 15 bits are the slot, the others the first 49 bits of the uniform number.
The product x_i std t is computed in doubles, within ERROR std of the value that infinitely many
bits would give: 2^-48 x_0 for the bits that are not there, 3 * 2^-53 x_0 for three roundings, x_0 <
4.85. If no half-integer is that near, it is rounded, and nothing more could change the result.
Otherwise (probability 2 ERROR std, 2^-17 at std = 2^27) 128 more bits are drawn and the product is
rounded in integer arithmetic. No function of a mathematical library takes part.

**The rest** (once in 8,192 draws) is drawn by rejection, from boxes over f - H between one corner
and the next and from an exponential over the tail. Boxes are chosen by integer weights, so only
that they cover f - H matters. Decisions are taken in doubles where they are clear by a margin
that is far above their error, and otherwise with 128 more bits and 80 digits.

**Error.** Doubles decide nothing that is within their error. What is left is to stop at 177 or
more bits, at 80 digits and at heights of 2^-192: below 2^-120 in total variation for each draw.
The margins rely on IEEE arithmetic and, in the rest alone, on `math.exp` and `math.log` within
2^-49.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from fedattn.randomness import Randomness

MAX_STD = 2.0**30
ERROR = 2.0**-45  # of x_i t in doubles; and of x in the rest
SLOT_BITS = 15
SLOTS = 1 << SLOT_BITS  # N
HEIGHT_BITS = 192
_MORE_BITS = 128
_WORD = (1 << 64) - 1
_PICK_BITS = 50  # a box is chosen by so many bits
_CLEAR = 2.0**-46  # a comparison of heights is decided in doubles if they differ by more
_PEAK = 1 / math.sqrt(2 * math.pi)  # f(0)
_TWO_PI = Decimal(
    "6.2831853071795864769252867665590057683943387987502116419498891846156328125724179972560696"
)


class Scratch:
    """Arrays that draws of up to `n` values work in; one thread's at a time."""

    def __init__(self, n: int) -> None:
        self.words = np.empty(n, np.uint64)
        self.slots = np.empty(n, np.int64)
        self.exact = np.empty(n)
        self.whole = np.empty(n)
        self.unclear = np.empty(n, np.bool_)


class RoundedNormal:
    """Draws of round(std Z) for a `std` in (0, 2^30]; holds no randomness, threads may share it.

    >>> RoundedNormal(1000.0).draw(4, Randomness.seeded(0), Scratch(4))
    array([ -687.,  -484.,  1779., -2076.])
    """

    def __init__(self, std: float) -> None:
        if not 0 < std <= MAX_STD:
            raise ValueError(f"std is {std:g}, must be in (0, 2^30]")
        self.std = std
        self._table = table()
        self._scaled = np.full(SLOTS, np.nan)  # NaN is never clear: the slots of the rest
        self._scaled[: len(self._table.widths)] = self._table.widths
        self._scaled *= std * 2.0**-63

    def draw(self, n: int, randomness: Randomness, scratch: Scratch) -> npt.NDArray[np.float64]:
        """`n` draws, whole numbers in a view of `scratch` that its next use overwrites.

        Takes `n` words of `randomness`, then what unclear draws and the rest need, in order.
        """
        words, slots, whole = scratch.words[:n], scratch.slots[:n], scratch.whole[:n]
        exact, unclear = scratch.exact[:n], scratch.unclear[:n]
        randomness.fill(words)
        signed = words.view(np.int64)
        np.bitwise_and(signed, SLOTS - 1, out=slots)
        np.copyto(whole, signed)
        self._scaled.take(slots, out=exact, mode="clip")
        np.multiply(exact, whole, out=exact)
        np.rint(exact, out=whole)
        np.subtract(exact, whole, out=exact)
        np.abs(exact, out=exact)
        np.less(exact, 0.5 - ERROR * self.std, out=unclear)
        np.logical_not(unclear, out=unclear)
        for place in unclear.nonzero()[0]:
            whole[place] = self._resolve(int(signed[place]), randomness)
        return whole

    def _resolve(self, word: int, randomness: Randomness) -> int:
        slot = word & (SLOTS - 1)
        if slot >= len(self._table.widths):
            return self._rest(randomness)
        return self.rectangle(slot, word >> SLOT_BITS, more(randomness))

    def rectangle(self, slot: int, bits: int, extra: int) -> int:
        """round(x_slot std t), t in [-1, 1) of the signed 49 `bits` and 128 `extra` ones: exact."""
        up, down = self._table.widths[slot].as_integer_ratio()
        std_up, std_down = self.std.as_integer_ratio()
        over = up * std_up * ((bits << _MORE_BITS) + extra)
        under = (down * std_down) << (63 - SLOT_BITS + _MORE_BITS)
        return (2 * over + under) // (2 * under)

    def _rest(self, randomness: Randomness) -> int:
        """A draw from the density f - H, rounded."""
        while True:
            bits = int.from_bytes(randomness.bytes(24), "little")
            place, height, chosen = bits & _WORD, bits >> 64 & _WORD, bits >> 128
            sign, chosen = 1 - 2 * (chosen & 1), chosen >> (64 - _PICK_BITS)
            box = bisect_right(self._table.picks, chosen)
            result = self.try_box(box, place, height)
            if result == UNCLEAR:
                result = self.try_box_exactly(
                    box,
                    (place << _MORE_BITS) + more(randomness),
                    (height << _MORE_BITS) + more(randomness),
                )
            if result is not None:
                return sign * result

    def try_box(self, box: int, place: int, height: int) -> int | None:
        """The rounded x at `place` in `box`, None if `height` is above f - H, or UNCLEAR.

        `place` and `height` are 64 bits: fractions of the box's width (for the tail a tail
        probability of the exponential) and of its height.
        """
        table = self._table
        u, v = (place + 0.5) * 2.0**-64, (height + 0.5) * 2.0**-64
        area = table.weight(box) * table.unit
        if box < len(table.widths):
            low, high = table.edges(box)
            x = low + (high - low) * u
            gap = _PEAK * math.exp(-0.5 * x * x) - table.tops[box]
            bound = v * area / (high - low)
        else:
            start = table.widths[0]
            beyond = -math.log(u) / start
            x = start + beyond
            gap = _PEAK * math.exp(-0.5 * start * start) * math.exp(-0.5 * beyond * beyond)
            bound = v * area * start
        scaled = x * self.std
        if (
            abs(bound - gap) < _CLEAR
            or abs(scaled % 1 - 0.5) < 2 * ERROR * self.std
            or place < 1 << 46  # of a place far out in the tail, 64 bits say too little
        ):
            return UNCLEAR
        return round(scaled) if bound < gap else None

    def try_box_exactly(self, box: int, place: int, height: int) -> int | None:
        """As `try_box` with 192 bits of `place` and `height` and 80 digits, never UNCLEAR."""
        table = self._table
        with localcontext(Context(prec=80)):
            half, unit = Decimal("0.5"), Decimal(2) ** -(64 + _MORE_BITS)
            peak = 1 / _TWO_PI.sqrt()
            u, v = (place + half) * unit, (height + half) * unit
            area = table.weight(box) * Decimal(table.unit)
            if box < len(table.widths):
                low, high = map(Decimal, table.edges(box))
                x = low + (high - low) * u
                top = table.heights[box] * Decimal(2) ** -HEIGHT_BITS
                gap = peak * (-half * x * x).exp() - top
                bound = v * area / (high - low)
            else:
                start = Decimal(table.widths[0])
                beyond = -u.ln() / start
                x = start + beyond
                gap = peak * (-half * (start * start + beyond * beyond)).exp()
                bound = v * area * start
            return math.floor(x * Decimal(self.std) + half) if bound < gap else None


UNCLEAR = -1  # no draw from a box, |x| std being at least 0


def more(randomness: Randomness) -> int:
    """128 further bits."""
    return int.from_bytes(randomness.bytes(_MORE_BITS // 8), "little")


@dataclass(frozen=True, eq=False)
class Table:
    """Rectangles under the normal density, and boxes over what they leave.

    widths: x_0 > x_1 > ..; heights: H_i in units of 2^-192, rounded up; tops: H_i, within 2^-54.
    picks: areas of boxes, cumulative, in units of `unit`, 2^50 in all. Box i lies between x_(i+1)
    and x_i (0 after the last), above H_i; the last is the exponential over the tail beyond x_0.
    """

    widths: Sequence[float]
    heights: Sequence[int]
    tops: Sequence[float]
    picks: Sequence[int]
    unit: float

    def weight(self, box: int) -> int:
        """The area of one box, in units of `unit`."""
        return self.picks[box] - (self.picks[box - 1] if box else 0)

    def edges(self, box: int) -> tuple[float, float]:
        """Where a box lies."""
        after = self.widths[box + 1] if box + 1 < len(self.widths) else 0.0
        return after, self.widths[box]


@lru_cache(maxsize=1)
def table() -> Table:
    """The one table, built in a tenth of a second when it is first asked for.

    From the widest rectangle inwards, each as wide as leaves its corners under the curve:
    Newton's method from the one before, then a little narrower, then checked.
    """
    half = 0.5 / SLOTS
    width = 4.0
    for _ in range(100):  # f(x) = half / x
        width = math.sqrt(2 * math.log(2 * width * SLOTS * _PEAK))
    widths: list[float] = []
    heights: list[int] = []
    height = 0
    while width > 0:
        width *= 1 - 2.0**-26
        height_with = height + _rise(width)
        if _density(width) * (1 - 2.0**-42) < height_with / (1 << HEIGHT_BITS):
            break  # what is left under the curve holds no such rectangle
        height = height_with
        widths.append(width)
        heights.append(height)
        width = _next_width(width, height / (1 << HEIGHT_BITS), half)
    tops = [each / (1 << HEIGHT_BITS) for each in heights]
    return Table(widths, heights, tops, *_picks(widths, tops))


def _density(x: float) -> float:
    return _PEAK * math.exp(-0.5 * x * x)


def _rise(width: float) -> int:
    """1 / (2 N width) in units of 2^-192, rounded up."""
    up, down = width.as_integer_ratio()
    return -(-(down << (HEIGHT_BITS - SLOT_BITS - 1)) // up)


def _next_width(width: float, height: float, half: float) -> float:
    """The largest x below `width` with f(x) = height + half / x; 0 if there is none."""
    for _ in range(60):
        rise = half / width
        slope = rise / width - width * _density(width)
        if slope >= 0:
            return 0.0
        step = (_density(width) - rise - height) / slope
        width -= step
        if width <= 0:
            return 0.0
        if abs(step) < 1e-9 * width:
            return width
    return 0.0


def _picks(widths: Sequence[float], tops: Sequence[float]) -> tuple[list[int], float]:
    """Cumulative integer weights of sum 2^50, and the area that a weight of 1 stands for.

    Every area is larger than its box's by 2^-20 at least, which covers the errors of doubles.
    """
    bounds = zip(widths, [*widths[1:], 0.0], tops, strict=True)
    areas = [(_density(low) - top) * (high - low) for high, low, top in bounds]
    areas.append(_density(widths[0]) / widths[0])
    unit = (1 + 2.0**-20) * math.fsum(areas) / ((1 << _PICK_BITS) - len(areas))
    picks = list(accumulate(math.ceil((1 + 2.0**-20) * area / unit) for area in areas))
    return [*picks[:-1], 1 << _PICK_BITS], unit
