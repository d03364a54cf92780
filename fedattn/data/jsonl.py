"""Import of a user's own conversations: JSONL, one conversation a line, in one of two schemas.

    {"id": str, "turns": [{"speaker": str, "text": str}, ...]}
    {"id"?: str, "user"?: str, "messages": [{"role": str, "content": str}, ...]}

*Turns.* `speaker` is a person's id, the same in all conversations of that person: owners and
splits are made by it. Names that mean nobody in particular ("A", "B") would make all As one
person, so make them unique, e.g. by the conversation's id.

*Messages.* (OpenAI's chat format.) The roles `user` and `assistant` are the two speakers, but only
the user is a person: `user` names them, owns the conversation and decides its split. Without it,
the conversation is a person of its own. System and developer messages are instructions, not
speech: they are left out and counted. Without `id`, the id is a hash of the messages.

Other keys are ignored. Consecutive turns of one speaker are joined by a space. A line with a
problem is reported by line number and field, never by its text, and stops the import until it is
fixed or skipped explicitly.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fedattn.data.dialogue import Dialogue, Turn, merge
from fedattn.data.problems import Finding, Note, Problem, report
from fedattn.errors import DataError


@dataclass(frozen=True, repr=False)
class JsonlFile:
    """What a file held: good conversations in file order, problems, and repairs."""

    path: str
    dialogues: tuple[Dialogue, ...]
    findings: tuple[Finding, ...]
    notes: Counter[Note] = field(default_factory=Counter)

    def __repr__(self) -> str:
        return "JsonlFile(<omitted>)"

    @property
    def skipped(self) -> Counter[Problem]:
        """Refused lines by their first problem."""
        first = {finding.line: finding.problem for finding in reversed(self.findings)}
        return Counter(first.values())

    def accepted(self, *, skip_bad: bool) -> tuple[Dialogue, ...]:
        """The good conversations; DataError lists the problems unless they may be skipped.

        A duplicate id is never skipped: which line stays would depend on another record, and so
        would the data set that the privacy guarantee is about. Nor is a file without any
        good conversation.
        """
        fatal = (Problem.DUPLICATE_ID, Problem.EMPTY_FILE)
        stops = [item for item in self.findings if not skip_bad or item.problem in fatal]
        if stops:
            raise DataError(report(self.path, stops, may_skip=not skip_bad))
        if not self.dialogues:
            raise DataError(f"{self.path}: no good conversation is left after skipping")
        return self.dialogues


def read_jsonl(path: str | Path) -> JsonlFile:
    """Read every line of `path` and judge it; only a file that cannot be opened raises DataError.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp(), "chats.jsonl")
    >>> _ = file.write_text('{"id": "c1", "turns": [{"speaker": "ann", "text": ""}]}')
    >>> print(*read_jsonl(file).findings, sep="; ")
    line 1, turns[0].text: empty text; remove it or fill it in [empty_text]
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        reason = type(error).__name__
    else:
        return parse_jsonl(content, path=str(path))
    raise DataError(f"{path}: cannot be read ({reason}); check data.path")


def parse_jsonl(content: bytes, *, path: str = "file") -> JsonlFile:
    """Judge the bytes of a JSONL file; `path` names it in errors. Never raises."""
    notes: Counter[Note] = Counter()
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
        notes[Note.BOM] += 1
    # Only LF ends a line: JSON text may hold U+2028 and its kin, where str.splitlines would cut.
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    dialogues: list[Dialogue] = []
    findings: list[Finding] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        notes[Note.CRLF] += line.endswith(b"\r")
        if not line.strip():
            notes[Note.BLANK_LINE] += 1
            continue
        record = Line(number)
        dialogue = record.read(line)
        if record.id is not None and record.id in seen:
            record.add(Problem.DUPLICATE_ID, "id")
        elif record.id is not None:
            seen.add(record.id)
        findings += record.findings
        if dialogue is not None and not record.findings:
            dialogues.append(dialogue)
            notes += record.notes
    if not dialogues and not findings:
        findings.append(Finding(0, "", Problem.EMPTY_FILE))
    return JsonlFile(path, tuple(dialogues), tuple(findings), +notes)


_Object: TypeAlias = dict[str, Any]
_SURROGATE = re.compile("[\ud800-\udfff]")


class _RepeatedKeyError(ValueError):
    pass


class Line:
    """One line on its way to a dialogue; problems gather in `findings`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.id: str | None = None
        self.findings: list[Finding] = []
        self.notes: Counter[Note] = Counter()

    def add(self, problem: Problem, where: str = "", detail: str = "") -> None:
        """Note a problem at `where`; `detail` is shown instead of the problem's own words."""
        self.findings.append(Finding(self.number, where, problem, detail))

    def read(self, line: bytes) -> Dialogue | None:
        """The dialogue, or None if it cannot be made; look at `findings` either way."""
        body = self._json(line)
        if body is None:
            return None
        if not isinstance(body, dict):
            self.add(Problem.WRONG_TYPE, "", "must be a JSON object, not a list or a value")
            return None
        if "turns" in body and "messages" in body:
            self.add(Problem.TWO_SCHEMAS)
        if "id" in body:
            self.id = self._text(body, "id", "id")
        if "messages" in body:
            return self._messages(body)
        if "id" not in body:
            self.add(Problem.MISSING_ID, "id")
        turns = self._entries(body, "turns", ("speaker", "text"))
        return self._dialogue(turns)

    def _json(self, line: bytes) -> object | None:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self.add(Problem.NOT_UTF8)
            return None
        try:
            body: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except _RepeatedKeyError:
            self.add(Problem.REPEATED_KEY)
        except (ValueError, RecursionError):
            self.add(Problem.INVALID_JSON)
        else:
            if body is None:
                self.add(Problem.WRONG_TYPE, "", "must be a JSON object, not a list or a value")
            return body
        return None

    def _messages(self, body: _Object) -> Dialogue | None:
        spoken = []
        turns = self._entries(body, "messages", ("role", "content"))
        for index, turn in enumerate(turns):
            if turn.speaker in ("system", "developer"):
                self.notes[Note.SYSTEM_MESSAGE] += 1
            elif turn.speaker in ("user", "assistant"):
                spoken.append(turn)
            else:
                self.add(Problem.UNKNOWN_ROLE, f"messages[{index}].role")
        person = self._text(body, "user", "user") if "user" in body else None
        if self.findings:
            return None
        if "id" not in body:
            self.id = _hash_of(turns)
            self.notes[Note.MADE_ID] += 1
        return self._dialogue(spoken, person=person or f"conversation/{self.id}")

    def _dialogue(self, turns: list[Turn], *, person: str = "") -> Dialogue | None:
        if self.findings or self.id is None:
            return None
        speakers = len({turn.speaker for turn in turns})
        where = "messages" if person else "turns"
        if speakers < 2:
            self.add(Problem.ONE_SPEAKER, where)
        if speakers > 2:
            self.add(Problem.MANY_SPEAKERS, where)
        return Dialogue(self.id, merge(turns), (person,) if person else ())

    def _entries(self, body: _Object, key: str, names: tuple[str, str]) -> list[Turn]:
        if key not in body:
            self.add(Problem.MISSING_FIELD, key)
            return []
        entries = body[key]
        if not isinstance(entries, list):
            self.add(Problem.WRONG_TYPE, key, "must be a list")
            return []
        turns = []
        for index, entry in enumerate(entries):
            where = f"{key}[{index}]"
            if not isinstance(entry, dict):
                self.add(Problem.WRONG_TYPE, where, "must be an object")
                continue
            who, text = (self._text(entry, name, f"{where}.{name}") for name in names)
            # A place is kept for what is wrong, so that later indices stay the file's own.
            turns.append(Turn(who or "user", text or ""))
        return turns

    def _text(self, holder: _Object, key: str, where: str) -> str | None:
        """The non-empty string under `key`; None after adding its problem."""
        if key not in holder:
            self.add(Problem.MISSING_FIELD, where)
            return None
        value = holder[key]
        if not isinstance(value, str):
            self.add(Problem.WRONG_TYPE, where, "must be a string")
        elif not value.strip():
            self.add(Problem.EMPTY_TEXT, where)
        elif _SURROGATE.search(value):
            self.add(Problem.LONE_SURROGATE, where)
        else:
            return value
        return None


def _unique(pairs: list[tuple[str, Any]]) -> _Object:
    body = dict(pairs)
    if len(body) < len(pairs):
        raise _RepeatedKeyError
    return body


def _no_constant(_name: str) -> None:
    raise ValueError


def _hash_of(turns: list[Turn]) -> str:
    """A canonical id from what was said: it depends on this record alone."""
    words = json.dumps([[turn.speaker, turn.text] for turn in turns]).encode()
    return "sha256/" + hashlib.sha256(b"fedattn/v1/made-id" + words).hexdigest()
