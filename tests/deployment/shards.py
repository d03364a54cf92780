"""What the tests of the real deployment train on, and what they read afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from tests.federation import tiny

DEVICES = 4
ROOT = Path(__file__).parent.parent.parent


def config(home: Path, *, rounds: int = 1, timeout_s: float = 60.0):
    return tiny(
        home / "public.jsonl",
        train={"rounds": rounds},
        secagg={"threshold": 3, "max_colluding": 1, "stage_timeout_s": timeout_s},
    )


def shards(home: Path, tmp_path: Path, count: int = DEVICES) -> list[Path]:
    """Copies: a ledger lies beside each, and a test's spend is its own."""
    made = []
    for number in range(count):
        path = tmp_path / f"shard-{number}.jsonl"
        path.write_bytes((home / f"shard-{number}.jsonl").read_bytes())
        made.append(path)
    return made


def entries(run_dir: Path, kind: str) -> list[dict]:
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def spent(shard: Path) -> int:
    """How many rounds a device's ledger says were spent on its data."""
    path = shard.with_name(f"{shard.name}.ledger.jsonl")
    return sum('"spent"' in line for line in path.read_text().splitlines())
