"""A federation in a temporary folder, and a clock."""

from __future__ import annotations

import pytest

from fedattn.cli_federation import found, members, running
from tests.kit.kit import Kit, fedattn


@pytest.fixture
def kit(tmp_path):
    made = Kit(tmp_path)
    fedattn("init", tmp_path / "fed", "--host", "127.0.0.1", "--name", "test federation")
    return made


@pytest.fixture
def set_time(monkeypatch):
    """Sets the time by which commands judge."""

    def set_(time):
        for module in (found, members, running):
            monkeypatch.setattr(module, "now", lambda: time)

    return set_
