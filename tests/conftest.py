"""Shared fixtures: a small generator with busy weights, records, and a config of seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine makes any example slow: time decides over no property.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

SHAPE: dict[str, int] = {
    "vocab_size": 257,
    "d_model": 16,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "context_tokens": 12,
    "reply_tokens": 8,
}


@pytest.fixture
def tokenizer():
    from fedattn.tokens import Tokenizer

    return Tokenizer(SHAPE["vocab_size"])


@pytest.fixture
def generator() -> Callable[..., Any]:
    """Makes an AttentionGenerator with no weight at zero, so that no gradient vanishes."""
    import torch

    from fedattn.config import Architecture
    from fedattn.model import AttentionGenerator

    def make(seed: int = 0, spread: float = 0.3, **shape: int) -> AttentionGenerator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AttentionGenerator(Architecture(**{**SHAPE, **shape}))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.dim() == 1 or name.endswith("bias.weight"):
                        parameter.add_(spread * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The directory of a seeded run that ended well, with its loud note; not to be changed."""
    from fedattn.simulate import simulate
    from tests.federation import conversations, tiny, write

    folder = tmp_path_factory.mktemp("finished")
    data = write(folder / "data.jsonl", conversations())
    run_dir = folder / "run"
    run_dir.mkdir()
    simulate(tiny(data, seed=1, train={"rounds": 1}), run_dir)
    return run_dir


@pytest.fixture
def make_records() -> Callable[..., list[Any]]:
    """Makes records of random tokens; each has `replies` replies, one unless told."""
    from fedattn.batches import Record

    def make(count: int, seed: int = 0, replies: int = 1) -> list[Record]:
        rng = random.Random(seed)
        return [
            Record(
                speakers=tuple(turn % 2 for turn in range(replies + 1)),
                turns=tuple(
                    tuple(rng.randrange(257) for _ in range(rng.randint(2, 9)))
                    for _ in range(replies + 1)
                ),
                replies=tuple(range(1, replies + 1)),
            )
            for _ in range(count)
        ]

    return make


@pytest.fixture
def make_config() -> Callable[..., Any]:
    """Makes a small config; keywords are `section__key=value`."""
    from fedattn.config import config_from_dict

    def make(**changes: Any) -> Any:
        raw: dict[str, Any] = {
            "name": "test",
            "data": {"clients": 3},
            "model": {"start": "random", "architecture": dict(SHAPE), "trainable": "all"},
            "train": {
                "local_steps": 2,
                "expected_batch_size": 4,
                "optimizer": "sgd",
                "learning_rate": 1.0,
                "device": "cpu",
            },
            "privacy": {
                "unit": "conversation",
                "noise": "local",
                "sampling_rate": 0.5,
                "noise_multiplier": 1.0,
                "clip_norm": 0.5,
                "epsilon_budget": 8.0,
            },
            "secagg": {"threshold": 2},
        }
        for key, value in changes.items():
            section, _, leaf = key.partition("__")
            if leaf:
                raw.setdefault(section, {})[leaf] = value
            else:
                raw[section] = value
        return config_from_dict(raw)

    return make
