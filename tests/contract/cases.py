"""What every engine must do alike: a config, which devices decline, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedattn.config import Config
from tests.federation import tiny

SEED = 5
_WIDE = {"epsilon_budget": {"outsider": 200.0}}
_DONE = ("open", "intent", "release", "intent", "release", "close")


@dataclass(frozen=True)
class Case:
    """A run of two rounds over four devices, or more where clients are sampled.

    `decliners` are indices of devices that decline every round: their ledger cannot be read.
    `survivors` by released round; None: decided by the draw.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    decliners: tuple[int, ...] = ()
    outcome: str = "completed"
    exit_code: int = 0
    kinds: tuple[str, ...] = _DONE
    survivors: tuple[int, ...] | None = (4, 4)

    def config(self, data: Path) -> Config:
        """The config over the conversations in `data`; seeded, one thread: NOT PRIVATE."""
        # (a salt that leaves every device a conversation to train on)
        split = {"salt": "contract", **self.changes.get("data", {})}
        return tiny(data, seed=SEED, **{**self.changes, "data": split})


CASES = [
    Case("conversation-local"),
    Case(
        "conversation-distributed",
        {"privacy": {"noise": "distributed", **_WIDE}, "train": {"local_steps": 1}},
    ),
    Case(
        "client-distributed-sampled",
        {
            "privacy": {"unit": "client", "noise": "distributed", "client_rate": 0.7, **_WIDE},
            "data": {"clients": 6},
        },
        survivors=None,
    ),
    Case("none", {"privacy": {"unit": "none", "noise": "none", "epsilon_budget": None}}),
    Case("a-device-declines", decliners=(1,), survivors=(3, 3)),
    Case(
        "too-few-are-left",
        decliners=(0, 2),
        outcome="aborted",
        exit_code=4,
        kinds=("open", "intent", "abort", "intent", "abort", "close"),
        survivors=(),
    ),
]
