"""Where a run that was cut off stands, as its ledger alone says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedattn
from fedattn.config import Config
from fedattn.entries import Abort, Close, Intent, Open, Release, Resume, Skip
from fedattn.errors import RunError
from fedattn.ledger import LedgerEntry, read_whole_lines
from fedattn.privacy.events import Event

_NOTHING = "nothing was spent; start a new run"


@dataclass(frozen=True)
class Standing:
    """What happened in a run so far. An intent counts as spent whatever became of it."""

    opened: Open
    closed: Close | None
    open_intent: str | None  # the hash of an intent that has no outcome and no `resume` after it
    model: str  # of the last release, or the start
    released_rounds: tuple[int, ...]
    aborted: int
    skipped: int
    last_round: int  # the highest that was intended or skipped; 0 before the first
    events: tuple[Event, ...]  # of all intents
    rosters: tuple[tuple[str, ...], ...]  # of all intents

    @classmethod
    def of(cls, entries: Sequence[LedgerEntry]) -> Standing:
        """The standing at the end of `entries`, of which the first is `open`."""
        bodies = [entry.body for entry in entries]
        if not bodies or not isinstance(bodies[0], Open):
            raise RunError("the ledger does not start with `open`; it cannot be resumed")
        model, open_intent = bodies[0].model_sha256, None
        for entry in entries:
            if isinstance(entry.body, Intent):
                open_intent = entry.hash
            elif isinstance(entry.body, Release | Abort | Resume):
                open_intent = None
            if isinstance(entry.body, Release):
                model = entry.body.model_after
        intents = [body for body in bodies if isinstance(body, Intent)]
        last = bodies[-1]
        return cls(
            opened=bodies[0],
            closed=last if isinstance(last, Close) else None,
            open_intent=open_intent,
            model=model,
            released_rounds=tuple(body.round for body in bodies if isinstance(body, Release)),
            aborted=sum(isinstance(body, Abort) for body in bodies),
            skipped=sum(isinstance(body, Skip) for body in bodies),
            last_round=max((b.round for b in bodies if isinstance(b, Intent | Skip)), default=0),
            events=tuple(intent.priced for intent in intents),
            rosters=tuple(tuple(intent.roster) for intent in intents),
        )


def require_resumable(ledger: Path, report: Path) -> Standing:
    """The standing of the run whose files these are; RunError if it has none, or is finished."""
    if not ledger.exists():
        raise RunError(f"{ledger}: missing, so there is nothing to resume; {_NOTHING}")
    entries, _torn = read_whole_lines(ledger)
    if not entries:
        raise RunError(f"{ledger}: no whole entry, so there is nothing to resume; {_NOTHING}")
    if report.exists():
        raise RunError(f"{report}: exists; the run is finished and nothing is left to resume")
    return Standing.of(entries)


def require_same_config(config: Config, opened: Open) -> None:
    """RunError, naming the first key that differs, unless the run was opened with `config`."""
    if config.sha256() == opened.config_sha256:
        return
    version = opened.fedattn_version
    key = _first_difference(opened.config, config.model_dump(mode="json"))
    if version != fedattn.__version__:
        raise RunError(
            f"the run was opened by fedattn {version}, whose configs differ ({key}); resume it "
            f"with {version}"
        )
    raise RunError(
        f"{key}: differs from the run's own config, and what a run promised cannot change; resume "
        "with the config it was opened with, or start a new run"
    )


def _first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict) and before != after:
            return f"{key}.{_first_difference(before, after)}"
        if before != after or (key in old) != (key in new):
            return key
    return "config"
