"""Attention as HTML: a fragment for reports, and a page of its own."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.attention_view.visible import (
    CUT,
    MARKER,
    Piece,
    begins_cut,
    cut,
    full_shade,
    pieces,
    who,
)
from fedattn.printable import printable

if TYPE_CHECKING:
    from markupsafe import Markup

_LONGEST = 20  # characters of a column's head
_TITLED = 0.01  # cells of at least this share say it when pointed at
_STYLED = 64  # the style serves replies of so many tokens; a longer one brings what it lacks


def heat_html(attention: AttentionMap, *, with_style: bool = True, is_open: bool = False) -> Markup:
    """A `<figure>`: the context shaded by attention, and below it a table of every reply token.

    Complete and escaped; no script, no network. Colours are CSS variables that follow light and
    dark. A page with several needs the style once: `with_style=False` leaves it out, but for the
    rules that a very long reply needs besides. `is_open` unfolds the table.
    """
    from markupsafe import Markup

    rows = len(attention.reply)
    pointed = range(max(rows, _STYLED)) if with_style else range(_STYLED, rows)
    rendered = _render(
        "heat.html.j2",
        view=_view(attention),
        with_style=with_style,
        pointed=pointed,
        is_open=is_open,
    )
    return Markup(rendered)  # noqa: S704  the template escapes every text that it is given


def attention_page(
    attention: AttentionMap, *, reply: str, what: str, notes: tuple[str, ...] = ()
) -> str:
    """One self-contained HTML file; `what` says whose and which attention, `notes` go on top."""
    return _render(
        "attention.html.j2",
        heat=heat_html(attention, is_open=True),
        reply=printable(reply),
        what=printable(what),
        notes=[printable(note) for note in notes],
    )


def _view(attention: AttentionMap) -> dict[str, Any]:
    """What the template shows, with every number as text."""
    shown, mean = pieces(attention), attention.mean()
    weights = [piece.weight(mean) for piece in shown]
    shares = attention.mean_by_turn()
    last = attention.turns[-1] if attention.turns else 0
    darkest = full_shade(weights)
    rows = [
        _row(printable(text), row, shown)
        for text, row in zip(attention.reply, attention.weights, strict=True)
    ]
    turns = []
    for turn in sorted(set(attention.turns)):
        inside = [
            {
                "text": piece.text,
                "shade": _shade(weight / darkest),
                "by_token": "".join(
                    f";--w{token}:{row['cells'][place]['shade']}" for token, row in enumerate(rows)
                ),
                "percent": _percent(weight),
            }
            for place, (piece, weight) in enumerate(zip(shown, weights, strict=True))
            if piece.turn == turn
        ]
        turns.append(
            {
                "who": who(turn, last),
                "share": _percent(shares[turn]),
                "width": f"{100 * shares[turn]:.1f}",
                "pieces": inside,
            }
        )
    return {
        "turns": turns,
        "cut_off": attention.turns[0] if attention.turns else 0,
        "begins_cut": CUT if begins_cut(attention) else "",
        "columns": [cut(piece.text.strip() or "·", _LONGEST) for piece in shown],
        "rows": rows,
        "marker": MARKER,
    }


def _first(piece: Piece, shown: list[Piece], place: int) -> bool:
    return place > 0 and shown[place - 1].turn != piece.turn


def _row(text: str, row: tuple[float, ...], shown: list[Piece]) -> dict[str, Any]:
    weights = [piece.weight(row) for piece in shown]
    darkest = full_shade(weights)
    return {
        "text": text,
        "cells": [
            {
                "shade": _shade(weight / darkest),
                "first": _first(piece, shown, place),
                "title": f"{text.strip()} ← {piece.text.strip()} {_percent(weight)}"
                if weight >= _TITLED
                else "",
            }
            for place, (piece, weight) in enumerate(zip(shown, weights, strict=True))
        ],
    }


def _shade(level: float) -> str:
    # (steeper than the weight itself: an even share should hardly show)
    return f"{min(max(level, 0.0), 1.0) ** 1.5:.2f}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _render(name: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("fedattn").joinpath(f"assets/{name}").read_text("utf-8")
    return environment.from_string(source).render(values)
