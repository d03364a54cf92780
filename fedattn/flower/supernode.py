"""`flower-supernode` that asks its SuperLink for messages more often than every 3 seconds.

A round of secure aggregation is five trips to every device, and nearly all of a trip's time is a
SuperNode asleep. Flower has no option for it; its loop sleeps by `time.sleep`, which this module
shortens for that loop alone (checked against the pinned Flower by a test).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Final

LOOP: Final = "flwr.supernode.start_client_internal"


def poll_every(seconds: float) -> None:
    """Let the SuperNode's loop sleep at most `seconds` where it would sleep longer."""
    loop = importlib.import_module(LOOP)

    def sleep(asked: float) -> None:
        time.sleep(min(asked, seconds))

    loop.time = SimpleNamespace(sleep=sleep)  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> None:
    """Run Flower's SuperNode with its own arguments, after `--poll-s SECONDS`."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--poll-s", type=float, required=True)
    asked, flower = parser.parse_known_args(argv)
    from flwr.supernode.cli.flower_supernode import flower_supernode

    poll_every(asked.poll_s)
    sys.argv = ["flower-supernode", *flower]
    flower_supernode()


if __name__ == "__main__":
    main()
