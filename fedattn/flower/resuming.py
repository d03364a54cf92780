"""A killed run is taken up: the checks before, who enrols again, and the entry that says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.serverapp import Grid

from fedattn.config import Config
from fedattn.entries import TORN_BYTES
from fedattn.errors import RunError, ThresholdError
from fedattn.flower.checkpoints import FOLDER
from fedattn.flower.enrolment import Member
from fedattn.flower.observer import Observer
from fedattn.ledger import Ledger
from fedattn.privacy.events import Event
from fedattn.resumption import Standing, require_same_config

_POLL_S = 0.5


def require_standing(
    ledger: Ledger, config: Config, event: Event, *, start_sha256: str, authority_held_by: str
) -> Standing:
    """Where the run of `ledger` stands; RunError unless it was opened on the same terms."""
    standing = Standing.of(ledger.entries)
    opened = standing.opened
    require_same_config(config, opened)
    if opened.start_sha256 != start_sha256:
        raise RunError(
            "the run started from another model than the one installed here; restore that model"
        )
    if opened.authority_held_by != authority_held_by:
        raise RunError(
            f"the run was opened with an authority held by {opened.authority_held_by!r}, now it is "
            f"{authority_held_by!r}; a run cannot change it"
        )
    if any(spent != event for spent in standing.events):
        raise RunError("the ledger's rounds cost other events than this version makes of a round")
    return standing


def enrol_again(
    grid: Grid, config: Config, standing: Standing, enrol: Callable[[], list[Member]]
) -> list[Member]:
    """Of the run's devices those that enrol again, in the order of its roster.

    Nobody is added: the roster is what the run promised. Who is missing takes no further part; if
    clients are sampled all must be there, because the rate is accounted for that number. Devices
    that lost their server come back by themselves: waits for them, a stage's timeout at most.
    ThresholdError if too few came.
    """
    roster = [bytes.fromhex(key) for key in standing.opened.roster]
    deadline = time.monotonic() + config.secagg.stage_timeout_s
    while len(list(grid.get_node_ids())) < len(roster) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    found = {member.key: member for member in enrol()}
    members = [found[key] for key in roster if key in found]
    need = config.secagg.threshold if config.privacy.client_rate == 1 else len(roster)
    if len(members) < need:
        raise ThresholdError(
            f"{len(members)} of the run's {len(roster)} devices enrolled again, need {need}; start "
            "them, then resume"
        )
    return members


def record_resume(
    ledger: Ledger, standing: Standing, members: Sequence[Member], observer: Observer
) -> None:
    """Append what was found: from here on the ledger is that of a run which goes on."""
    torn = ledger.torn
    ledger.append(
        "resume",
        {
            "open_intent": standing.open_intent,
            "model": standing.model,
            "roster": [member.key.hex() for member in members],
            "torn": torn[:TORN_BYTES].hex() or None,
            "torn_bytes": len(torn),
        },
    )
    found = f"resumed after round {standing.last_round} from the model of the last release"
    if standing.open_intent is not None:
        found += f"; round {standing.last_round} was cut off, it stays spent and is not retried"
    if torn:
        found += f"; {len(torn)} bytes of a torn ledger line were cut off"
    missing = len(standing.opened.roster) - len(members)
    if members and missing:
        found += f"; {missing} devices did not enrol again and take no further part"
    observer.note(found)


def scratch(run_dir: Path) -> Path:
    """Where a second enrolment keeps its certificates: the first ones are the auditor's."""
    return run_dir / FOLDER
