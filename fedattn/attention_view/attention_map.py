"""Where each token of a reply looked, as text and numbers; no torch, so that reports hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from fedattn.errors import AttentionError

DECIMALS: Final = 4
_UNITS: Final = 10**DECIMALS
_KEYS: Final = ("context", "turns", "reply", "weights")


@dataclass(frozen=True)
class AttentionMap:
    """S context tokens, T reply tokens, and the attention between them.

    `context[s]` is the text that token s begins: a marker, and a token that only goes on with a
    character begun before it, have none. `turns[s]` is the index of its turn, 0 the oldest; turns
    that the model's window cut off have no token. `reply[t]` is the text of reply token t, and
    `weights[t][s]` the share of its attention on context token s when t was written. Weights are
    not negative; each row sums to 1 up to rounding to 4 decimals.
    """

    context: tuple[str, ...]
    turns: tuple[int, ...]
    reply: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists; weights to 4 decimals, rounded so that each row keeps its sum."""
        return {
            "context": list(self.context),
            "turns": list(self.turns),
            "reply": list(self.reply),
            "weights": [list(rounded(row)) for row in self.weights],
        }

    @classmethod
    def from_json(cls, stored: object) -> AttentionMap:
        """Inverse of `to_json` for rounded weights; AttentionError names the key that is wrong."""
        if not isinstance(stored, Mapping):
            raise AttentionError(f"attention: must be an object with {', '.join(_KEYS)}")
        for key in stored:
            if key not in _KEYS:
                raise AttentionError(f"attention: unknown key; it has {', '.join(_KEYS)} alone")
        context, turns, reply, weights = (_list(stored, key) for key in _KEYS)
        size = len(context)
        for key, texts in (("context", context), ("reply", reply)):
            if not all(isinstance(text, str) for text in texts):
                raise AttentionError(f"attention.{key}: must be a list of strings")
        _check_turns(turns, size)
        if len(weights) != len(reply):
            raise AttentionError(
                f"attention.weights: has {len(weights)} rows, attention.reply has {len(reply)}"
            )
        for place, row in enumerate(weights):
            _check_row(row, size, where=f"attention.weights[{place}]")
        return cls(
            tuple(context),
            tuple(turns),
            tuple(reply),
            tuple(tuple(float(weight) for weight in row) for row in weights),
        )

    def by_turn(self) -> tuple[tuple[float, ...], ...]:
        """Each reply token's attention by turn, markers included: (T, turns).

        A turn that the window cut off has 0.
        """
        count = max(self.turns, default=-1) + 1
        return tuple(_summed(row, self.turns, count) for row in self.weights)

    def mean(self) -> tuple[float, ...]:
        """Attention on each context token, averaged over the reply: (S,); 0s for an empty reply."""
        count = max(len(self.weights), 1)
        return tuple(
            math.fsum(row[place] for row in self.weights) / count
            for place in range(len(self.context))
        )

    def mean_by_turn(self) -> tuple[float, ...]:
        """`by_turn`, averaged over the reply: (turns,)."""
        return _summed(self.mean(), self.turns, max(self.turns, default=-1) + 1)

    def is_of(self, turns: Sequence[str], reply: str) -> bool:
        """Whether it can be of this reply to these turns, oldest first.

        The reply may lack white space around it. Turns that the window cut off may be missing,
        and the oldest that is there may lack its beginning.
        """
        if "".join(self.reply).strip() != reply.strip():
            return False
        if not self.turns or self.turns[-1] != len(turns) - 1:
            return not self.turns and not turns
        oldest, texts = self.turns[0], [""] * len(turns)
        for turn, group in groupby(zip(self.turns, self.context, strict=True), itemgetter(0)):
            texts[turn] = "".join(text for _, text in group)
        # (a window that begins inside a character shows the rest of it as U+FFFD)
        begun = turns[oldest].endswith(texts[oldest].lstrip("\ufffd"))
        return begun and texts[oldest + 1 :] == list(turns[oldest + 1 :])


def rounded(row: Sequence[float]) -> tuple[float, ...]:
    """`row` to 4 decimals; its sum is rounded once, not once for each entry.

    Each entry is rounded down, then those that lost most get one unit more. Idempotent.

    >>> rounded([1 / 3, 1 / 3, 1 / 3])
    (0.3334, 0.3333, 0.3333)
    """
    exact = [weight * _UNITS for weight in row]
    units = [math.floor(weight + 1e-6) for weight in exact]  # (0.3333 * 10000 is not quite 3333)
    left = round(math.fsum(exact)) - sum(units)
    lost = sorted(range(len(exact)), key=lambda place: units[place] - exact[place])
    for place in lost[: max(left, 0)]:
        units[place] += 1
    return tuple(unit / _UNITS for unit in units)


def _summed(row: Sequence[float], turns: Sequence[int], count: int) -> tuple[float, ...]:
    found = [0.0] * count  # one pass: a report of others may have as many turns as tokens
    for turn, group in groupby(zip(turns, row, strict=True), itemgetter(0)):
        found[turn] = math.fsum(weight for _, weight in group)
    return tuple(found)


def _list(stored: Mapping[Any, Any], key: str) -> list[Any]:
    value = stored.get(key)
    if not isinstance(value, list | tuple):
        raise AttentionError(f"attention.{key}: must be a list")
    return list(value)


def _check_turns(turns: Sequence[object], size: int) -> None:
    if len(turns) != size:
        raise AttentionError(
            f"attention.turns: has {len(turns)} entries, attention.context has {size}"
        )
    before = 0
    for turn in turns:
        # (a number beyond any conversation would make a view of that many turns)
        if type(turn) is not int or not before <= turn <= before + 1_000:
            raise AttentionError(
                "attention.turns: must be whole numbers from 0 that never fall from token to token"
            )
        before = turn


def _check_row(row: object, size: int, *, where: str) -> None:
    if not isinstance(row, list | tuple) or len(row) != size:
        raise AttentionError(f"{where}: must be a list of {size} numbers, one a context token")
    if any(
        isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1
        for weight in row
    ):
        raise AttentionError(f"{where}: weights must be numbers in 0..1")
    # every entry may be off by half a unit of the last decimal
    if abs(math.fsum(row) - 1) > size * 0.5 / _UNITS + 1e-6:
        raise AttentionError(f"{where}: sums to {math.fsum(row):.4f}, must sum to 1")
