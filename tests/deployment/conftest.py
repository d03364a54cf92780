"""Shards for the tests of real processes on 127.0.0.1."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployment.shards import DEVICES
from tests.federation import conversations, write


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Four shards of conversations, and other ones for the server to measure on."""
    folder = tmp_path_factory.mktemp("loopback")
    items = conversations(60)
    for number in range(DEVICES):
        write(folder / f"shard-{number}.jsonl", items[number::DEVICES])
    write(folder / "public.jsonl", conversations(40, 1))
    return folder
