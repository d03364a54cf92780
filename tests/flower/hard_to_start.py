"""The ClientApp of `answering`, in workers that are killed while they start.

HARD_TO_START names a file that counts the starts; HARD_TO_START_DIES has the numbers that die.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.flower.answering import app

__all__ = ["app"]

if "HARD_TO_START" in os.environ:  # (pytest imports it too, to look for doctests)
    _counted = Path(os.environ["HARD_TO_START"])
    with _counted.open("a") as _file:
        _file.write("x")
    if str(len(_counted.read_text())) in os.environ["HARD_TO_START_DIES"].split():
        os.kill(os.getpid(), signal.SIGKILL)
