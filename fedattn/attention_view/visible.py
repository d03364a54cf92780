"""Text that is safe to show, in pieces that have a weight, and how dark each is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.printable import printable

MARKER: Final = "›"  # stands for the token that begins a turn
CUT: Final = "…"


class Piece(NamedTuple):
    """What is shown as one: a text, its turn, and the context tokens whose weight it carries."""

    text: str
    turn: int
    places: tuple[int, ...]

    def weight(self, row: Sequence[float]) -> float:
        """Its share of attention in `row` (S,)."""
        return sum(row[place] for place in self.places)


def cut(text: str, longest: int) -> str:
    """`text` in at most `longest` characters, with … where it was cut."""
    return text if len(text) <= longest else text[: longest - 1] + CUT


def pieces(attention: AttentionMap) -> list[Piece]:
    """The context as shown, oldest first: every token is in one piece.

    A token without text joins the piece before it in its turn, whose character it ends; at the
    beginning of a turn it is the turn's marker.
    """
    found: list[Piece] = []
    for place, (text, turn) in enumerate(zip(attention.context, attention.turns, strict=True)):
        begins = not found or found[-1].turn != turn
        if text:
            found.append(Piece(printable(text), turn, (place,)))
        elif begins:
            found.append(Piece(MARKER, turn, (place,)))
        else:
            found[-1] = found[-1]._replace(places=(*found[-1].places, place))
    return found


def begins_cut(attention: AttentionMap) -> bool:
    """Whether the oldest turn shown lost its beginning, its marker too, to the model's window."""
    return bool(attention.context and attention.context[0])


def full_shade(weights: Sequence[float]) -> float:
    """The weight that is drawn darkest: the largest, but no less than three even shares.

    Without the second, attention that prefers nothing would be drawn as dark everywhere.

    >>> full_shade([0.85, 0.05, 0.05, 0.05]), full_shade([0.25] * 4)
    (0.85, 0.75)
    """
    if not weights:
        return 1.0
    return max(max(weights), 3.0 * sum(weights) / len(weights)) or 1.0


def who(turn: int, last: int) -> str:
    """Who said turn `turn` of 0..last: the last one is the person's, and they alternate."""
    return "model" if (last - turn) % 2 else "you"
