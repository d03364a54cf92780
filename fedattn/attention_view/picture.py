"""Attention as a PNG: reply tokens by rows, the conversation by columns."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.attention_view.visible import cut, pieces, who
from fedattn.errors import AttentionError
from fedattn.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI: Final = 150
_CELL: Final = 0.2  # inches
_LEFT, _RIGHT, _TOP, _BOTTOM = 1.2, 0.9, 1.4, 0.5  # inches around the cells
_NARROWEST: Final = 3.0  # inches of cells: a short context leaves room for the title
_LONGEST: Final = 14  # characters of a token's label
_AXES: Final = "rows: tokens of the reply; columns: the conversation; shade: share of the row"
_LARGEST: Final = 1 << 15  # pixels of a side; matplotlib draws less than twice as many


def picture_size(attention: AttentionMap) -> tuple[int, int]:
    """Width and height in pixels of `heat_png(attention)`."""
    width, height = _inches(attention)
    return round(width * DPI), round(height * DPI)


def heat_png(attention: AttentionMap, *, what: str = "attention") -> bytes:
    """The map as a PNG of `picture_size`; characters that the font lacks are drawn as boxes.

    what: a title, words of our own; under it, what rows, columns and shades are.
    Needs matplotlib, but none of its state: no window, no `pyplot`. AttentionError if a side would
    have more than 32,768 pixels, about 1,000 tokens.
    """
    if max(picture_size(attention)) > _LARGEST:
        raise AttentionError(
            f"attention: a picture of {len(attention.reply)} by {len(attention.context)} tokens is "
            "too large; ask for a shorter reply, or for the HTML page"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _inches(attention)
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    left, up = 0.12 / width, 1 - 0.1 / height
    figure.text(left, up, what, va="top", fontsize=8, weight="bold", parse_math=False)
    up -= 0.16 / height
    figure.text(left, up, _AXES, va="top", fontsize=6.5, color="#444444", parse_math=False)
    shown = pieces(attention)
    if shown and attention.weights:
        box = (
            _LEFT / width,
            _BOTTOM / height,
            1 - (_LEFT + _RIGHT) / width,
            1 - (_TOP + _BOTTOM) / height,
        )
        axes = figure.add_axes(box)
        cells = [[piece.weight(row) for piece in shown] for row in attention.weights]
        image = axes.imshow(cells, cmap="Oranges", aspect="auto", vmin=0, interpolation="nearest")
        _label(axes, attention)
        bar = figure.add_axes(((width - 0.6) / width, box[1], 0.12 / width, box[3]))
        figure.colorbar(image, cax=bar, format="{x:.0%}").ax.tick_params(labelsize=6)
    else:
        figure.text(0.5, 0.5, "nothing was written", ha="center")
    stored = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font", category=UserWarning
        )
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(stored, format="png", dpi=DPI)
    return stored.getvalue()


def _label(axes: Axes, attention: AttentionMap) -> None:
    shown, shares = pieces(attention), attention.mean_by_turn()
    reply = [cut(printable(text).strip() or "·", _LONGEST) for text in attention.reply]
    # (without parse_math=False a `$` in a turn would begin a formula)
    axes.set_yticks(range(len(reply)), reply, fontsize=7, parse_math=False)
    names = [cut(piece.text.strip() or "·", _LONGEST) for piece in shown]
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90, parse_math=False)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for start, end, turn in _spans([piece.turn for piece in shown]):
        if start:
            axes.axvline(start - 0.5, color="black", linewidth=0.8)
        axes.annotate(
            f"{who(turn, shown[-1].turn)}\n{shares[turn]:.0%}",
            ((start + end - 1) / 2, len(reply) - 0.5),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            annotation_clip=False,
        )


def _spans(turns: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first column, column after the last, turn) of each turn."""
    found: list[tuple[int, int, int]] = []
    for place, turn in enumerate(turns):
        if found and found[-1][2] == turn:
            found[-1] = (found[-1][0], place + 1, turn)
        else:
            found.append((place, place + 1, turn))
    return found


def _inches(attention: AttentionMap) -> tuple[float, float]:
    columns = max(len(pieces(attention)) * _CELL, _NARROWEST)
    rows = max(len(attention.reply), 2) * _CELL
    return _LEFT + columns + _RIGHT, _TOP + rows + _BOTTOM
