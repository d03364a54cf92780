"""A small federation over generated conversations: real code throughout, seconds per run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedattn import contribution
from fedattn.config import Config, config_from_dict
from fedattn.data import partitions
from fedattn.device import Device
from fedattn.simulate import found_federation

WORDS = [
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "bird",
    "runs",
    "sleeps",
    "sings",
    "in",
    "the",
    "house",
    "and",
    "then",
    "again",
]


def conversations(count: int = 60, flavour: int = 0) -> list[dict[str, Any]]:
    """`count` conversations between twenty people; `flavour` changes every word of them."""
    made = []
    for i in range(count):
        ann, bob = f"user{i % 20}", f"user{(i * 7 + 1) % 20}"
        if ann == bob:
            bob = "user99"
        turns = [
            {
                "speaker": ann if turn % 2 == 0 else bob,
                "text": " ".join(
                    WORDS[(i * 5 + turn * 3 + k * (1 + flavour)) % len(WORDS)] for k in range(5)
                ),
            }
            for turn in range(6)
        ]
        made.append({"id": f"conversation-{i}", "turns": turns})
    return made


def write(path: Path, items: list[dict[str, Any]]) -> Path:
    """The conversations as JSONL; what a process remembers of an earlier file is forgotten."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    partitions._partition.cache_clear()
    contribution._tokenized.cache_clear()
    return path


def tiny(path: Path, **changes: Any) -> Config:
    """A config that trains in a second; `changes` are nested updates, e.g. train={'rounds': 1}."""
    raw: dict[str, Any] = {
        "name": "test",
        "workers": 0,  # in this process, where a test may replace things
        "data": {"source": "jsonl", "path": str(path), "salt": "test", "clients": 4},
        "model": {
            "start": "random",
            "architecture": {
                "vocab_size": 260,
                "d_model": 8,
                "heads": 2,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "context_tokens": 16,
                "reply_tokens": 12,
            },
            "trainable": "all",
        },
        "train": {"rounds": 2, "local_steps": 2, "expected_batch_size": 3, "threads": 1},
        "privacy": {
            "unit": "conversation",
            "noise": "local",
            "sampling_rate": 0.2,
            "noise_multiplier": 1.0,
            "epsilon_budget": 50.0,
            "i_know": True,
        },
        "secagg": {"threshold": 3, "max_colluding": 1},
        "eval": {"examples": 10, "progress_examples": 5, "samples": 1},
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and key in raw else value
    return config_from_dict(raw)


def certified(devices: list[Device], folder: Path) -> tuple[bytes, bytes]:
    """Found a federation of `devices` that have met; its authority's certificate and theirs."""
    authority = found_federation(devices, folder / "authority").read_bytes()
    certificates = b"".join(each.certificate for each in devices)
    for each in devices:
        each.meet(certificates)
    return authority, certificates
