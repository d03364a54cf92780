"""Which files this process opens, as the interpreter itself reports it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_watching: list[list[str]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watching:
        for seen in _watching:
            seen.append(str(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def opened() -> Iterator[list[str]]:
    """The names of all files that are opened meanwhile, in order."""
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def was_opened(seen: list[str], path: Path) -> bool:
    """Whether `path` is among the names."""
    return str(path) in seen
