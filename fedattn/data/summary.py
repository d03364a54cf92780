"""What `fedattn data inspect` shows the data's owner. Local: none of it may leave the device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedattn.config import DataConfig
from fedattn.data.clean import prepared, require_cleaning
from fedattn.data.dialogue import Dialogue
from fedattn.data.filters import examples, keeps
from fedattn.data.load import describe, read_source
from fedattn.data.splits import partition

if TYPE_CHECKING:
    from rich.table import Table

LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Share:
    """One client's training data or one split: counts, and bytes of UTF-8 over all turns."""

    name: str
    conversations: int
    examples: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A data set in numbers.

    `read` conversations came from the source and `kept` passed the filters; `skipped` lines were
    refused and `notes` repaired, by reason; `cleaned` counts what `data.clean` did to training
    conversations. `shares` holds each client's training data as it trains, then
    `train` (their sum), `validation` and `test`. `quantiles` maps a quantity of the training data
    to its values at `LEVELS` (nearest rank); without data it has no values.
    """

    description: str
    read: int
    kept: int
    people: int
    skipped: dict[str, int]
    notes: dict[str, int]
    cleaned: dict[str, int]
    shares: tuple[Share, ...]
    quantiles: dict[str, tuple[int, ...]]


def inspect(config: DataConfig, *, skip_bad: bool = False) -> Summary:
    """Load, filter and partition the data set of `config` and count it; raises DataError."""
    require_cleaning(config.clean)
    source = read_source(config, skip_bad=skip_bad)
    kept = [dialogue for dialogue in source.dialogues if keeps(dialogue, config)]
    parts = partition(kept, config)
    limit = config.max_reply_bytes
    owned, counts = _prepared(parts.train, config)
    words = config.clean.min_reply_words
    replies = [_reply_bytes(part, limit, words) for part in owned]
    clients = [
        _share(f"client {index + 1}", part, len(sizes))
        for index, (part, sizes) in enumerate(zip(owned, replies, strict=True))
    ]
    trained = [dialogue for part in owned for dialogue in part]
    train = _share("train", trained, sum(map(len, replies)))
    held_out = [
        _share(name, part, len(_reply_bytes(part, limit)))
        for name, part in (("validation", parts.validation), ("test", parts.test))
    ]
    return Summary(
        description=describe(config),
        read=len(source.dialogues),
        kept=len(kept),
        people=len({person for dialogue in kept for person in dialogue.people}),
        skipped={problem.name.lower(): count for problem, count in source.skipped.items()},
        notes={note.name.lower(): count for note, count in source.notes.items()},
        cleaned=dict(sorted(counts.items())),
        shares=(*clients, train, *held_out),
        quantiles={
            "turns per conversation": _quantiles([len(each.turns) for each in trained]),
            "bytes per reply": _quantiles([size for sizes in replies for size in sizes]),
            "conversations per client": _quantiles([share.conversations for share in clients]),
        },
    )


def share_table(summary: Summary) -> Table:
    """A rich table: a row for each client and split."""
    from rich.table import Table

    title = f"{summary.kept:,} of {summary.read:,} conversations kept, {summary.people:,} people"
    counts = {**summary.skipped, **summary.notes, **summary.cleaned}
    caption = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
    table = Table(title=title, caption=caption or None)
    table.add_column("part")
    for heading in ("conversations", "examples", "bytes"):
        table.add_column(heading, justify="right")
    last_client = len(summary.shares) - 4
    for index, share in enumerate(summary.shares):
        cells = (f"{count:,}" for count in (share.conversations, share.examples, share.bytes))
        table.add_row(share.name, *cells, end_section=index == last_client)
    return table


def quantile_table(summary: Summary) -> Table:
    """A rich table: a row for each quantity of the training data."""
    from rich.table import Table

    table = Table(title="training data, quantiles")
    table.add_column("quantity")
    for level in LEVELS:
        table.add_column(f"{level:.0%}", justify="right")
    for name, values in summary.quantiles.items():
        table.add_row(name, *(f"{value:,}" for value in values))
    return table


def _share(name: str, dialogues: Sequence[Dialogue], examples: int) -> Share:
    size = sum(len(turn.text.encode()) for each in dialogues for turn in each.turns)
    return Share(name, len(dialogues), examples, size)


def _prepared(
    train: Sequence[Sequence[Dialogue]], config: DataConfig
) -> tuple[list[list[Dialogue]], Counter[str]]:
    """Each client's conversations as they train, and what cleaning did, `left_out` among it.

    One whose cleaning raises counts as absent, as where it trains (`records.training_records`).
    """
    counts: Counter[str] = Counter()

    def made_of(dialogue: Dialogue) -> Dialogue | None:
        try:
            return prepared(dialogue, config, counts)
        except Exception:  # (its message could quote what was said)
            return None

    owned = []
    for part in train:
        made = [made_of(dialogue) for dialogue in part]
        kept = [dialogue for dialogue in made if dialogue is not None]
        counts["left_out"] += len(made) - len(kept)
        owned.append(kept)
    return owned, +counts


def _reply_bytes(
    dialogues: Sequence[Dialogue], max_reply_bytes: int, min_words: int = 0
) -> list[int]:
    """The bytes of every example's reply."""
    return [
        len(item.reply.text.encode())
        for dialogue in dialogues
        for item in examples(dialogue, max_reply_bytes, min_words)
    ]


def _quantiles(values: list[int]) -> tuple[int, ...]:
    """The smallest value that a share `level` of all values does not exceed, for each level."""
    ordered = sorted(values)
    if not ordered:
        return ()
    return tuple(ordered[max(math.ceil(level * len(ordered)) - 1, 0)] for level in LEVELS)
