"""The values that flow: a turn, a dialogue, an example. None of them prints its text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class Turn:
    """What one speaker said before another spoke: `text` is not empty, `speaker` names who.

    >>> Turn("ann", "our secret")
    Turn(<omitted>)
    """

    speaker: str
    text: str

    def __repr__(self) -> str:
        return "Turn(<omitted>)"


@dataclass(frozen=True, slots=True, repr=False)
class Dialogue:
    """One conversation under its canonical id; neighbouring turns have different speakers.

    `people` are the persons whose words these are: an owner is one of them and splits are made by
    them. Left empty, every speaker is a person; a chat with an assistant names its user alone.
    """

    id: str
    turns: tuple[Turn, ...]
    people: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.people:
            object.__setattr__(self, "people", self.speakers)

    def __repr__(self) -> str:
        return "Dialogue(<omitted>)"

    @property
    def speakers(self) -> tuple[str, ...]:
        """The distinct speakers, sorted."""
        return tuple(sorted({turn.speaker for turn in self.turns}))


@dataclass(frozen=True, slots=True, repr=False)
class Example:
    """A reply and all turns before it, the oldest first; `context` has at least one turn."""

    context: tuple[Turn, ...]
    reply: Turn

    def __repr__(self) -> str:
        return "Example(<omitted>)"


def merge(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join consecutive turns of one speaker by a space and drop turns without text.

    A space, not a newline: public text for pre-training holds no newline, and a line break
    between two messages of one person carries little that a generator should learn.

    >>> [turn.text for turn in merge([Turn("a", "hi "), Turn("a", "there"), Turn("b", " ")])]
    ['hi there']
    """
    speakers: list[str] = []
    texts: list[list[str]] = []
    for turn in turns:
        text = turn.text.strip()
        if not text:
            continue
        if speakers and speakers[-1] == turn.speaker:
            texts[-1].append(text)
        else:
            speakers.append(turn.speaker)
            texts.append([text])
    return tuple(Turn(who, " ".join(parts)) for who, parts in zip(speakers, texts, strict=True))
