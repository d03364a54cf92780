"""Lines and bars as inline SVG, through pygal; no script, no style and no colour of their own."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

from markupsafe import Markup

_SIZE: Final = (460, 250)  # units of the drawing; a page scales it
_DOTS_UP_TO = 24  # points of a line that are marked each
_LONG = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True)
class Line:
    """Points (round, value) under a class name; `label` has %s where a point's value goes."""

    style: str
    points: Sequence[tuple[int, float]]
    label: str
    is_dotted: bool = True
    digits: int = 2


def lines(name: str, title: str, summary: str, drawn: Sequence[Line], *, from_zero: bool) -> Markup:
    """Values over rounds; the vertical axis starts at 0 or just below the least value."""
    pygal = _library()
    values = [value for line in drawn for _, value in line.points]
    numbers = [number for line in drawn for number, _ in line.points]
    low, high = (0.0 if from_zero else min(values)), max(values)
    if high - low < 1e-3:
        low, high = low - 5e-4, high + 5e-4
    heights = ticks(low, high, 6)
    chart = pygal.XY(
        **_plain(),
        range=(heights[0], heights[-1]),
        xrange=(min(numbers), max(numbers) + (min(numbers) == max(numbers))),
        x_labels=_rounds(min(numbers), max(numbers)),
        y_labels=heights,
        show_x_guides=False,
        include_x_axis=False,
        dots_size=3,
        x_value_formatter="{:.0f}".format,
        value_formatter=_spaced(heights),
    )
    for line in drawn:
        points = [{"value": point, "formatter": _labelled(line, point)} for point in line.points]
        dotted = line.is_dotted and len(points) <= _DOTS_UP_TO
        chart.add(line.style, points, show_dots=dotted)
    return _inline(chart, name, title, summary, [line.style for line in drawn])


def bars(
    name: str,
    title: str,
    summary: str,
    numbers: Sequence[int],
    series: Sequence[tuple[str, str, Sequence[int]]],
) -> Markup:
    """Counts stacked on each other, a bar a round; a series is a class, a label with %s, counts."""
    pygal = _library()
    highest = max(sum(counts) for counts in zip(*(each[2] for each in series), strict=True))
    step = -(-len(numbers) // 10)
    heights = ticks(0, max(highest, 1), 5, whole=True)
    chart = pygal.StackedBar(
        **_plain(),
        range=(0, heights[-1]),
        x_labels=[str(n) if place % step == 0 else "" for place, n in enumerate(numbers)],
        y_labels=heights,
        show_x_guides=False,
        value_formatter="{:.0f}".format,
    )
    for style, label, counts in series:
        values = [
            {"value": count, "formatter": _counted(label, number, count)}
            for number, count in zip(numbers, counts, strict=True)
        ]
        chart.add(style, values)
    return _inline(chart, name, title, summary, [style for style, _, _ in series])


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """At most `most` + 2 round numbers, evenly spaced, the first <= low and the last >= high.

    >>> ticks(0, 8.4, 6)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    >>> ticks(0, 3, 6, whole=True)
    [0.0, 1.0, 2.0, 3.0]
    """
    rough = max((high - low) / most, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def _spaced(heights: Sequence[float]) -> Callable[[float], str]:
    """Numbers with as many decimals as tell the ticks apart."""
    digits = max(0, math.ceil(-math.log10(heights[1] - heights[0]) - 1e-9))
    return f"{{:.{digits}f}}".format


def _rounds(first: int, last: int) -> list[int]:
    return [int(number) for number in ticks(first, last, 8, whole=True) if first <= number <= last]


def _labelled(line: Line, point: tuple[int, float]) -> Callable[[object], str]:
    text = f"round {point[0]}: " + line.label.replace("%s", f"{point[1]:.{line.digits}f}")
    return lambda _: text


def _counted(label: str, number: int, count: int) -> Callable[[object], str]:
    text = f"round {number}: " + label.replace("%s", str(count))
    return lambda _: text


def _plain() -> dict[str, Any]:
    width, height = _SIZE
    return {
        "width": width,
        "height": height,
        "js": (),
        "css": (),
        "show_legend": False,
        "no_prefix": True,
        "disable_xml_declaration": True,
        "margin": 4,
        "spacing": 6,
        "x_title": "round",
        "truncate_label": -1,  # pygal makes "…" of round 13 where there are many
    }


def _library() -> Any:
    """pygal, without the importer that it adds to the whole process for its maps.

    That one has no `find_spec`: every later import would warn of it.
    """
    import pygal

    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "pygal"]
    return pygal


def _inline(chart: Any, name: str, title: str, summary: str, styles: Sequence[str]) -> Markup:
    """The drawing alone: what pygal adds for scripts, its styles and comments left out."""
    root = ET.fromstring(chart.render())  # noqa: S314 - drawn right here from numbers
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    _prune(root)
    for element in root.iter():
        _restyle(element, styles)
    box = root.get("viewBox", f"0 0 {_SIZE[0]} {_SIZE[1]}")
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title {name}-summary"}
    )
    for place, (tag, text) in enumerate((("title", title), ("desc", summary))):
        element = ET.Element(tag, {"id": f"{name}-{'summary' if place else 'title'}"})
        element.text = text
        root.insert(place, element)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - ElementTree has escaped it


def _prune(root: ET.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            kind = child.get("class", "")
            if child.tag == "desc" and kind == "value":
                _hint(parent, child)
            if child.tag in ("defs", "title", "desc") or kind in (
                "plot text-overlay",
                "plot tooltip-overlay",
                "background",
            ):
                parent.remove(child)


def _hint(parent: ET.Element, told: ET.Element) -> None:
    """What a mark says when it is pointed at, by the browser itself."""
    mark = next((child for child in parent if child.tag in ("circle", "rect")), None)
    if mark is not None:
        ET.SubElement(mark, "hint").text = told.text


def _restyle(element: ET.Element, styles: Sequence[str]) -> None:
    if element.tag == "hint":
        element.tag = "title"
    words = list(_renamed(element.get("class", "").split(), styles))
    element.attrib.pop("class", None)
    if words:
        element.set("class", " ".join(words))
    for key, value in element.attrib.items():
        element.set(key, _LONG.sub(lambda found: f"{float(found[0]):.2f}", value))


def _renamed(words: Sequence[str], styles: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("color-"):
            yield styles[int(word.removeprefix("color-"))]
        elif not word.startswith("serie-") and word not in ("reactive", "tooltip-trigger"):
            yield word
