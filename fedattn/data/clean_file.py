"""`fedattn data clean`: a file of conversations into a cleaned one, and a report of counts.

The output is the data set that neighbours are defined on: deduplication is decided between
records, so it must be done before anything is promised about one of them. Ids, and who said what,
stay. Nothing of what was said is in the report or in an error.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedattn.config import CleanConfig
from fedattn.data.clean import clean, require_cleaning
from fedattn.data.clean_duplicates import duplicates
from fedattn.data.dialogue import Dialogue
from fedattn.data.jsonl import read_jsonl
from fedattn.durable import put_new
from fedattn.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

_ALL = CleanConfig(junk=True, mask_pii=True)


@dataclass(frozen=True, slots=True)
class CleanOptions:
    """What `clean_file` does; `rules.min_reply_words`: one reply of so many words, or it goes."""

    rules: CleanConfig = _ALL
    is_deduplicated: bool = True
    near: float | None = 0.8  # Jaccard overlap from which two are alike; None: exact ones alone
    min_turns: int = 2
    max_bytes: int | None = None  # of UTF-8 over all turns of a conversation
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.near is not None and not 0 < self.near <= 1:
            raise DataError(f"--near: is {self.near:g}, must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class CleanReport:
    """Counts for the data's owner; no text, no id.

    `read` good conversations = `kept` + the sum of `dropped`. `turns_read` = `turns_kept` + what
    `turns` has as `symbols`, `mashing`, `markup`, `empty`, `joined` to the one before, and
    `in_dropped`: what was left of conversations that went. `tidied` turns may be any of them.
    `masked` counts placeholders; `skipped` refused lines and `notes` repairs of the import.
    """

    read: int
    kept: int
    turns_read: int
    turns_kept: int
    dropped: dict[str, int]
    turns: dict[str, int]
    masked: dict[str, int]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def clean_file(path: Path, out: Path, options: CleanOptions) -> CleanReport:
    """Clean the conversations of `path` into the new file `out`, its owner's alone (0600).

    It has its name when it is whole and on disk. DataError if `out` exists, if a line is bad (by
    number and field) and not to be skipped, if nothing is left, if the disk refuses, or if what the
    rules need is not installed.
    """
    require_cleaning(options.rules)
    if os.path.lexists(out):
        raise DataError(f"{out}: exists; choose another --out")
    file = read_jsonl(path)
    dialogues = file.accepted(skip_bad=options.skip_bad)
    kept, counts, dropped = cleaned(dialogues, options)
    if not kept:
        raise DataError(f"{path}: no conversation is left after cleaning; allow more")
    _write(out, "".join(f"{_line(dialogue)}\n" for dialogue in kept).encode())
    return CleanReport(
        read=len(dialogues),
        kept=len(kept),
        turns_read=sum(len(dialogue.turns) for dialogue in dialogues),
        turns_kept=sum(len(dialogue.turns) for dialogue in kept),
        dropped={reason: dropped[reason] for reason in sorted(+dropped)},
        turns={kind: counts[kind] for kind in _TURNS if counts[kind]},
        masked={kind: counts[kind] for kind in _MASKED if counts[kind]},
        skipped={problem.name.lower(): count for problem, count in file.skipped.items()},
        notes={note.name.lower(): count for note, count in file.notes.items()},
    )


_GONE = ("symbols", "mashing", "markup", "empty", "joined")
_TURNS = ("tidied", *_GONE, "in_dropped")
_MASKED = ("email", "url", "card", "phone")
_WORDS = {  # for people; JSON has the names
    "symbols": "dropped, symbols alone",
    "mashing": "dropped, keys hit at random",
    "markup": "dropped, markup alone",
    "empty": "dropped, nothing was left",
    "joined": "joined to the one before",
    "in_dropped": "in dropped conversations",
    "exact_duplicate": "same as an earlier one",
    "near_duplicate": "nearly the same as an earlier one",
}


def cleaned(
    dialogues: tuple[Dialogue, ...], options: CleanOptions
) -> tuple[list[Dialogue], Counter[str], Counter[str]]:
    """What is left, in order, what was done to turns, and why conversations went.

    Each conversation goes for one reason, the first of: `failed` (its cleaning raised: it is left
    out alone), `english`, `too_few_turns`, `too_long`, `short_replies`, then those of
    `duplicates` among the rest.
    """
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    left: list[Dialogue] = []
    for dialogue in dialogues:
        try:
            one = clean(dialogue, options.rules, tidies=True)
        except Exception:  # (its message could quote what was said)
            dropped["failed"] += 1
            counts["in_dropped"] += len(dialogue.turns)
            continue
        counts += one.counts
        made = one.dialogue
        reason = "english" if made is None else _length_reason(made, options)
        if made is not None and reason is None:
            left.append(made)
        else:
            dropped[str(reason)] += 1
            counts["in_dropped"] += len(dialogue.turns) - sum(one.counts[each] for each in _GONE)
    if not options.is_deduplicated:
        return left, counts, dropped
    reasons = duplicates(left, options.near)
    dropped.update(reason for reason in reasons if reason is not None)
    kept = [dialogue for dialogue, reason in zip(left, reasons, strict=True) if reason is None]
    counts["in_dropped"] += sum(len(each.turns) for each in left)
    counts["in_dropped"] -= sum(len(each.turns) for each in kept)
    return kept, counts, dropped


def _length_reason(dialogue: Dialogue, options: CleanOptions) -> str | None:
    turns = dialogue.turns
    if len(turns) < options.min_turns or len(dialogue.speakers) < 2:
        return "too_few_turns"
    size = sum(len(turn.text.encode()) for turn in turns)
    if options.max_bytes is not None and size > options.max_bytes:
        return "too_long"
    if max(len(turn.text.split()) for turn in turns[1:]) < options.rules.min_reply_words:
        return "short_replies"
    return None


def _line(dialogue: Dialogue) -> str:
    """The conversation in the schema it came in; other keys of its line are not kept."""
    body: dict[str, Any] = {"id": dialogue.id}
    if len(dialogue.people) == 1:  # a chat with an assistant names its user alone
        (person,) = dialogue.people
        if person != f"conversation/{dialogue.id}":
            body["user"] = person
        body["messages"] = [{"role": t.speaker, "content": t.text} for t in dialogue.turns]
    else:
        body["turns"] = [{"speaker": t.speaker, "text": t.text} for t in dialogue.turns]
    return json.dumps(body, ensure_ascii=False)


def _write(out: Path, content: bytes) -> None:
    try:
        put_new(out, content)
    except FileExistsError:
        raise DataError(f"{out}: exists; choose another --out") from None
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def clean_table(report: CleanReport) -> Table:
    """A rich table: a row for each count."""
    from rich.table import Table

    table = Table(title=f"{report.kept:,} of {report.read:,} conversations kept")
    table.add_column("what")
    table.add_column("count", justify="right")
    sections = (
        ("conversations dropped", report.dropped),
        ("turns", {"read": report.turns_read, **report.turns, "kept": report.turns_kept}),
        ("masked in all that was read", report.masked),
        ("lines left out", report.skipped),
        ("lines repaired", report.notes),
    )
    for title, counts in sections:
        for name, count in counts.items():
            table.add_row(f"{title}: {_WORDS.get(name, name.replace('_', ' '))}", f"{count:,}")
        table.add_section()
    return table
