"""Reading what is to be replied to: JSONL, one conversation a line, in one of three schemas.

    {"id"?: str, "context": [str, ...]}                                 two speakers in turn
    {"id"?: str, "turns": [{"speaker": str, "text": str}, ...]}         as `jsonl`
    {"id"?: str, "messages": [{"role": str, "content": str}, ...]}      as `jsonl`

The reply is what comes next: it answers the last turn, whoever said it. Unlike a conversation to
train on, one turn is enough and an id is not needed. Consecutive turns of one speaker are joined,
system and developer messages left out. A line with a problem is reported by line number, field and
remedy, never by its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedattn.data.dialogue import Turn, merge
from fedattn.data.jsonl import Line
from fedattn.data.problems import LISTED, Finding, Problem
from fedattn.errors import DataError

_KEYS: Final = ("context", "turns", "messages")


@dataclass(frozen=True, slots=True, repr=False)
class Context:
    """The turns of line `line` (from 1), oldest first, by two speakers in turn."""

    line: int
    id: str | None
    turns: tuple[str, ...]

    def __repr__(self) -> str:
        return "Context(<omitted>)"


@dataclass(frozen=True, repr=False)
class ContextFile:
    """What a file held, in file order, and its problems."""

    path: str
    contexts: tuple[Context, ...]
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        return "ContextFile(<omitted>)"

    @property
    def skipped(self) -> int:
        """How many lines have a problem."""
        return len({finding.line for finding in self.findings})

    def accepted(self, *, skip_bad: bool) -> tuple[Context, ...]:
        """The good ones; DataError lists the problems unless they may be skipped."""
        if self.findings and not (skip_bad and self.contexts):
            remedy = "no line is good" if skip_bad else "fix them, or leave them out by --skip-bad"
            shown = [f"  {finding}" for finding in self.findings[:LISTED]]
            if len(self.findings) > LISTED:
                shown.append(f"  and {len(self.findings) - LISTED} more")
            heading = f"{self.path}: {len(self.findings)} problem(s); {remedy}"
            raise DataError("\n".join([heading, *shown]))
        return self.contexts


def read_contexts(path: Path) -> ContextFile:
    """Read and judge every line; only a file that cannot be opened raises DataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check --in") from None
    contexts: list[Context] = []
    findings: list[Finding] = []
    # As in `parse_jsonl`: only LF ends a line, a byte order mark and blank lines are passed over.
    for number, stored in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not stored.strip():
            continue
        line = _ContextLine(number)
        turns = line.read_turns(stored)
        findings += line.findings
        if not line.findings:
            contexts.append(Context(number, line.id, turns))
    if not contexts and not findings:
        findings.append(Finding(0, "", Problem.EMPTY_FILE))
    return ContextFile(str(path), tuple(contexts), tuple(findings))


class _ContextLine(Line):
    """One line on its way to a context; problems gather in `findings`."""

    def read_turns(self, stored: bytes) -> tuple[str, ...]:
        """The turns; look at `findings` before using them."""
        body = self._json(stored)
        if self.findings:
            return ()
        if not isinstance(body, dict):
            self.add(Problem.WRONG_TYPE, "", "must be a JSON object, not a list or a value")
            return ()
        if "id" in body:
            self.id = self._text(body, "id", "id")
        found = [key for key in _KEYS if key in body]
        if len(found) != 1:
            kind = Problem.TWO_SCHEMAS if found else Problem.MISSING_FIELD
            self.add(kind, "", "needs one of `context`, `turns` and `messages`, and only one")
            return ()
        turns = self._texts(body) if found == ["context"] else self._speeches(body, found[0])
        if not turns and not self.findings:
            self.add(Problem.MISSING_FIELD, found[0], "holds no turn to reply to; add one")
        return turns

    def _texts(self, body: dict[str, Any]) -> tuple[str, ...]:
        texts = body["context"]
        if not isinstance(texts, list):
            self.add(Problem.WRONG_TYPE, "context", "must be a list of texts")
            return ()
        places = {f"context[{index}]": text for index, text in enumerate(texts)}
        # where something is wrong it has been noted, and nothing is returned for it
        return tuple((self._text(places, place, place) or "").strip() for place in places)

    def _speeches(self, body: dict[str, Any], key: str) -> tuple[str, ...]:
        names = ("role", "content") if key == "messages" else ("speaker", "text")
        turns = self._entries(body, key, names)
        if key == "messages":
            turns = self._spoken(turns)
        if len({turn.speaker for turn in turns}) > 2:
            self.add(Problem.MANY_SPEAKERS, key)
        return tuple(turn.text for turn in merge(turns))

    def _spoken(self, turns: list[Turn]) -> list[Turn]:
        for index, turn in enumerate(turns):
            if turn.speaker not in ("user", "assistant", "system", "developer"):
                self.add(Problem.UNKNOWN_ROLE, f"messages[{index}].role")
        return [turn for turn in turns if turn.speaker in ("user", "assistant")]
