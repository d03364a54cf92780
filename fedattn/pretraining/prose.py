"""Prose as dialogues: paragraphs cut at sentence ends, two voices taking turns.

Nobody answers anybody here. A piece is learned given the pieces before it, which is what a
decoder with attention to a context can learn from running text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fedattn.data import Dialogue, Turn

_SENTENCES = re.compile(r"(?<=[.!?;:])\s+")
_TURNS = 12  # of a dialogue: more would only be cut off from the context


def pieces(text: str, limit: int) -> Iterator[str]:
    """`text` cut at sentence ends to about `limit` characters; a longer sentence stays whole.

    >>> list(pieces("One. Two! Three?", 9))
    ['One. Two!', 'Three?']
    """
    part = ""
    for sentence in _SENTENCES.split(" ".join(text.split())):
        if part and len(part) + len(sentence) >= limit:
            yield part
            part = ""
        part = f"{part} {sentence}".strip()
    if part:
        yield part


def cut(dialogue: Dialogue, limit: int) -> Dialogue:
    """The dialogue with long turns cut into pieces of their speaker."""
    turns = (
        Turn(turn.speaker, piece) for turn in dialogue.turns for piece in pieces(turn.text, limit)
    )
    return Dialogue(dialogue.id, tuple(turns))


def prose(name: str, text: str, limit: int) -> Iterator[Dialogue]:
    """Running text as dialogues `<name>/<number>` of two voices, at least two turns each."""
    parts = list(pieces(text, limit))
    for number, start in enumerate(range(0, len(parts), _TURNS)):
        turns = alternate(parts[start : start + _TURNS])
        if len(turns) > 1:
            yield Dialogue(f"{name}/{number:03d}", turns)


def alternate(texts: list[str]) -> tuple[Turn, ...]:
    """Texts as turns of two voices."""
    return tuple(Turn("ab"[index % 2], text) for index, text in enumerate(texts))
