"""A figure with its spread over the repeats of one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of several measurements."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The spread of `values`."""
        values = sorted(values)
        return cls(values[0], median(values), values[-1])

    @classmethod
    def of_ratios(cls, ours: Sequence[float], theirs: Sequence[float]) -> Self:
        """The spread of ours / theirs, repeat by repeat."""
        return cls.of(a / b for a, b in zip(ours, theirs, strict=True))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)
