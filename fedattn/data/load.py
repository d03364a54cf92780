"""From a data config to the conversations that may train, and a description for reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fedattn.config import CleanConfig, DataConfig
from fedattn.data.chitchat import chitchat_version, load_chitchat
from fedattn.data.dialogue import Dialogue
from fedattn.data.filters import keeps
from fedattn.data.jsonl import read_jsonl
from fedattn.data.problems import Note, Problem


@dataclass(frozen=True, slots=True, repr=False)
class Source:
    """A source's conversations before any filter, in file order.

    `skipped` counts the refused lines by their (first) problem, `notes` the repairs; both are
    for the data's owner alone.
    """

    dialogues: tuple[Dialogue, ...]
    skipped: Counter[Problem]
    notes: Counter[Note]

    def __repr__(self) -> str:
        return "Source(<omitted>)"


def load_dialogues(config: DataConfig, *, skip_bad: bool = False) -> list[Dialogue]:
    """The source's conversations that pass the filters, sorted by id.

    A JSONL file with a bad line raises DataError that lists its problems; with `skip_bad` bad
    lines are left out instead, except for duplicate ids (`read_source` says how many).
    """
    kept = [
        item for item in read_source(config, skip_bad=skip_bad).dialogues if keeps(item, config)
    ]
    return sorted(kept, key=lambda dialogue: dialogue.id)


def read_source(config: DataConfig, *, skip_bad: bool = False) -> Source:
    """Every good conversation of the source; raises as `load_dialogues` does."""
    if config.path is None:
        return Source(tuple(load_chitchat()), Counter(), Counter())
    file = read_jsonl(config.path)
    return Source(file.accepted(skip_bad=skip_bad), file.skipped, file.notes)


def describe(config: DataConfig) -> str:
    """The data set in one sentence, from the config alone: no private record is read.

    Cleaning is by each record alone, so neighbours are of the data before it.
    """
    source = chitchat_version() if config.path is None else "a JSONL file named by data.path"
    thinned = f"; {len(config.thin)} owners have lower rates" if config.thin else ""
    return (
        f"{source}: conversations of two speakers with at least {config.min_turns} turns, replies "
        f"of at most {config.max_reply_bytes} bytes that repeat neither themselves nor an earlier "
        f"turn; {config.test_share:.0%} of users held out for test and "
        f"{config.validation_share:.0%} for validation; training conversations kept at rate "
        f"{config.keep_rate:g}{thinned}; {config.clients} clients; salt {config.salt!r}"
        f"{_cleaning(config.clean)}"
    )


def _cleaning(rules: CleanConfig) -> str:
    done = [
        sentence
        for is_on, sentence in (
            (rules.junk, "turns without words left out"),
            (rules.english, "conversations left out that are hardly English"),
            (
                rules.min_reply_words,
                f"replies of fewer than {rules.min_reply_words} words kept as context alone",
            ),
            (rules.mask_pii, f"emails, URLs, card-like and phone numbers ({rules.region}) masked"),
        )
        if is_on
    ]
    if not done:
        return ""
    return (
        f"; training conversations, each by itself, cleaned as data.clean says ({', '.join(done)})"
        "; a device with data of its own cleans as its own policy says"
    )
