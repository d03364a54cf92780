"""A run's config as people read it: a group for each section, a line for each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_TITLES: Final = {
    "privacy": "Privacy",
    "train": "Training",
    "data": "Data",
    "model": "Model",
    "secagg": "Secure aggregation",
    "eval": "Measurement",
}


@dataclass(frozen=True)
class Group:
    """A section of the config: its title, and every key in it with its value as text."""

    title: str
    lines: tuple[tuple[str, str], ...]


def settings(config: Mapping[str, Any]) -> list[Group]:
    """Every key of `config`, nested ones with dots; what belongs to no section comes first."""
    loose = {key: value for key, value in config.items() if key not in _TITLES}
    groups = [Group("Run", tuple(_lines(loose)))]
    groups += [
        Group(title, tuple(_lines(config[key])))
        for key, title in _TITLES.items()
        if isinstance(config.get(key), Mapping)
    ]
    return groups


def _lines(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping) and value:
            yield from _lines(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", _text(value)


def _text(value: object) -> str:
    """One value as a person writes it.

    >>> [_text(each) for each in (True, None, 1e-5, [], ["a", 2])]
    ['yes', '–', '1e-05', 'none', 'a, 2']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_text(each)}" for key, each in sorted(value.items())) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(each) for each in value) or "none"
    return str(value)
