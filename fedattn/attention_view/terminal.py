"""Attention in a terminal: the turns with a shade behind each word, and in numbers."""

from __future__ import annotations

import math
import unicodedata
from typing import Final

from rich.style import Style
from rich.text import Text

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.attention_view.visible import CUT, begins_cut, cut, full_shade, pieces, who

_BAR: Final = 8  # characters of a full bar
_TOP: Final = 3  # words named with their numbers
_LONGEST: Final = 24  # characters of a named word
# (share of the darkest, text, background). Mid tones with their own text colour: they can be read
# on dark and light terminals, and stay apart when a terminal has 256 or 16 colours.
_SHADES: Final = (
    (0.80, Style(color="#ffffff", bgcolor="#d70000", bold=True)),
    (0.55, Style(color="#000000", bgcolor="#ff8700")),
    (0.36, Style(color="#000000", bgcolor="#d7d787")),
)


def heat_line(attention: AttentionMap) -> Text:
    """The context, a line a turn: its share of attention, and each word shaded by its own.

    Averaged over the reply. Shares and the most attended words are in numbers too, so that it can
    be read without colour. Safe for a terminal: no control character of a turn is in it.
    """
    line = Text()
    if not attention.weights or not attention.context:
        return line.append("nothing was written, so nothing was looked at", style="dim")
    mean, last = attention.mean(), attention.turns[-1]
    shown = pieces(attention)
    weights = [piece.weight(mean) for piece in shown]
    darkest = full_shade(weights)
    shares = attention.mean_by_turn()
    first = attention.turns[0]
    if first:
        line.append(f"{CUT} {_turns(first)} before this did not fit the model's window\n", "dim")
    for turn in range(first, last + 1):
        line.append(f"{shares[turn]:4.0%} {_bar(shares[turn])} ")
        line.append(f"{who(turn, last):<5} ", style="bold")
        if turn == first and begins_cut(attention):
            line.append(CUT, style="dim")
        for piece, weight in zip(shown, weights, strict=True):
            if piece.turn == turn:
                line.append(piece.text, style=_shade(weight / darkest))
        line.append("\n")
    best = sorted(range(len(shown)), key=lambda place: -weights[place])[:_TOP]
    named = (f"{_named(shown[place].text)} {weights[place]:.0%}" for place in best)
    line.append(f"most: {', '.join(named)}", style="dim")
    return line


def _named(text: str) -> str:
    word = cut(text.strip() or " ", _LONGEST)
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in word):
        word = f"\u2068{word}\u2069"  # isolated: its number is not drawn on its other side
    return f"“{word}”"


def _shade(level: float) -> Style:
    return next((style for least, style in _SHADES if level >= least), Style.null())


def _bar(share: float) -> str:
    filled = min(_BAR, math.floor(share * _BAR + 0.5))
    return "█" * filled + "·" * (_BAR - filled)


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"
