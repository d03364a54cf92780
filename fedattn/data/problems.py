"""What can be wrong with a line of a conversation file, and what is accepted and repaired.

Every outcome has a name. A message has the line number, a path of the schema's own names and the
remedy; it never has text of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LISTED = 20  # problems that an error spells out; the rest are counted


class Problem(StrEnum):
    """Why a line (or the file) is refused; the value is what the reader sees."""

    EMPTY_FILE = "the file holds no conversation; write one JSON object a line"
    NOT_UTF8 = "not UTF-8; save the file as UTF-8"
    INVALID_JSON = "not valid JSON; write one complete JSON object on one line"
    REPEATED_KEY = "an object says a key twice; keep one"
    LONE_SURROGATE = "a lone surrogate escape (\\ud800..\\udfff) is no text; write both or none"
    WRONG_TYPE = "wrong type"
    MISSING_FIELD = "missing; add it"
    MISSING_ID = "missing; give each conversation an id of its own"
    DUPLICATE_ID = "an earlier line has this id; give each conversation its own or remove one"
    TWO_SCHEMAS = "`turns` and `messages` on one line; keep one"
    EMPTY_TEXT = "empty text; remove it or fill it in"
    UNKNOWN_ROLE = "role must be user, assistant, system or developer; rename or remove it"
    ONE_SPEAKER = "fewer than two speakers; a conversation has two"
    MANY_SPEAKERS = "three or more speakers; a conversation has two, split it by pairs"


class Note(StrEnum):
    """What is accepted and repaired; counted so that the owner can see it."""

    BOM = "byte order mark ignored"
    CRLF = "line ends in CR LF"
    BLANK_LINE = "blank line ignored"
    SYSTEM_MESSAGE = "system or developer message left out"
    MADE_ID = "id made from a hash of the messages"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: `line` counts from 1 (0: the whole file), `where` is a path of schema names."""

    line: int
    where: str
    problem: Problem
    detail: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line else "file"
        inside = f", {self.where}" if self.where else ""
        return f"{place}{inside}: {self.detail or self.problem.value} [{self.problem.name.lower()}]"


def report(path: str, findings: Sequence[Finding], *, may_skip: bool) -> str:
    """The text of an error: at most `LISTED` findings, then how many more."""
    shown = [f"  {finding}" for finding in findings[:LISTED]]
    if len(findings) > LISTED:
        shown.append(f"  and {len(findings) - LISTED} more")
    remedy = (
        "fix them, or set data.skip_bad: true to leave those lines out"
        if may_skip
        else "these cannot be skipped"
    )
    return "\n".join([f"{path}: {len(findings)} problem(s); {remedy}", *shown])
