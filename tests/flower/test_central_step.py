"""A round of `unit: conversation` is central DP-SGD without a centre.

With equal sampling and no noise, what four silos and secure aggregation make of the model is the
step that one machine holding all conversations would make, to fixed-point precision.

The bound. Each of n silos rounds each of the padded coordinates, on a grid of s steps a unit, by
less than one step: the decoded sum is off by less than n sqrt(padded) / s in l2, and the mean by
that over B, the public batch size. SGD multiplies by the learning rate; Adam's first step is
g / (|g| + tau) per coordinate, which moves at most 1 / tau times as far as g does. The rest is
float32: of gradients and sums, 1e-5 of the sum (as tests/test_sensitivity.py measures), and of the
model's own weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedattn.encoding
import fedattn.train
from fedattn.batches import Record, collate, pair, tokenize
from fedattn.checkpoint import load_model, read_vector, start_model
from fedattn.clipping import CLIP_MARGIN
from fedattn.config import Config
from fedattn.data import Dialogue, load_dialogues, load_partition, partition
from fedattn.mechanism import Mechanism
from fedattn.model import AttentionGenerator, trainable_names
from fedattn.simulate import simulate
from fedattn.skellam import SkellamSampler
from fedattn.tokens import Tokenizer
from tests.federation import conversations, tiny, write

SILOS, BATCH, CLIP, RATE = 4, 20, 0.05, 0.5
TAU = 1e-2


def is_taken(record: Record) -> bool:
    """Half of all conversations, each by its own hash: the same in a silo and in the pool."""
    return hashlib.sha256(repr(record.turns).encode()).digest()[0] < 128


def short_conversations() -> list[dict[str, Any]]:
    """Two turns each: one reply, so that nothing is left to draw."""
    return [{**each, "turns": each["turns"][:2]} for each in conversations(80)]


def config(path: Path, noise: str, optimizer: str, **train: Any) -> Config:
    return tiny(
        path,
        seed=3,
        data={"salt": "a", "min_turns": 2, "test_share": 0.05, "validation_share": 0.05},
        train={
            "rounds": 1,
            "local_steps": 1,
            "expected_batch_size": BATCH,
            "server_optimizer": optimizer,
            "server_learning_rate": RATE,
            "server_adaptivity": TAU,
            **train,
        },
        privacy={"noise": noise, "sampling_rate": 0.5, "clip_norm": CLIP},
    )


def pooled(made: Config) -> Sequence[Dialogue]:
    """All training conversations, as one machine would hold them."""
    central = made.data.model_copy(update={"clients": 1})
    (silo,) = partition(load_dialogues(central), central).train
    return silo


def central_sum(model: AttentionGenerator, held: Sequence[Record]) -> torch.Tensor:
    """DP-SGD's sum the slow way: a gradient a record, in float64, clipped, added. (d,)"""
    exact, tokenizer = model.double(), Tokenizer(model.shape.vocab_size)
    named = dict(exact.named_parameters())
    parameters = [named[name] for name in trainable_names(exact, "all")]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for record in held:
        example = pair(record, 1, tokenizer, model.shape.context_tokens)
        batch = collate([example], tokenizer, model.shape.reply_tokens)
        logits = exact(batch.context, batch.tokens)[0]
        loss = F.cross_entropy(logits, batch.targets[0])
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        total += flat * min(1.0, CLIP * (1 - CLIP_MARGIN) / float(flat.norm()))
    return total


@pytest.fixture
def without_noise(monkeypatch):
    """Sampling by hash; noise, of shares and of the server, zero. All else is as it is."""
    monkeypatch.setattr(
        fedattn.train, "poisson_sample", lambda held, _rate, _coins: list(filter(is_taken, held))
    )
    monkeypatch.setattr(SkellamSampler, "draw", lambda _self, n, _coins: np.zeros(n, np.int32))
    monkeypatch.setattr(fedattn.encoding, "add_gaussian", lambda _values, _std, _coins: None)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
@pytest.mark.parametrize("noise", ["distributed", "server"])
def test_a_round_of_four_silos_is_the_central_step_on_the_pooled_data(
    tmp_path, without_noise, noise, optimizer
):
    made = config(write(tmp_path / "data.jsonl", short_conversations()), noise, optimizer)
    (tmp_path / "run").mkdir()
    result = simulate(made, tmp_path / "run")
    model = load_model(result.run_dir / "model.safetensors")
    names = trainable_names(model, "all")
    after = read_vector(model, names).double()

    model = start_model(made.model, seed=made.seed)
    before = read_vector(model, names).double()
    records = tokenize(pooled(made), Tokenizer(model.shape.vocab_size), made.data.max_reply_bytes)
    taken = [record for record in records if is_taken(record)]
    total = central_sum(model, taken)
    weights = torch.nn.Parameter(before.clone())
    weights.grad = total / BATCH
    central = (
        torch.optim.SGD([weights], lr=RATE)
        if optimizer == "fedavg"
        else torch.optim.Adam([weights], lr=RATE, betas=(0.9, 0.99), eps=TAU)
    )
    central.step()
    step = weights.detach() - before

    mechanism = Mechanism(made, before.numel())
    slope = RATE if optimizer == "fedavg" else RATE / TAU
    fixed_point = slope * SILOS * math.sqrt(mechanism.padded) / (mechanism.grid_scale * BATCH)
    float32 = slope * 1e-5 * float(total.norm()) / BATCH + 2.0**-24 * float(after.norm())
    difference = float((after - before - step).norm())
    print(f"off by {difference:.3g} of {float(step.norm()):.3g}, bound {fixed_point + float32:.3g}")
    assert difference <= fixed_point + float32
    assert len(taken) > 10
    assert fixed_point + float32 < 0.01 * float(step.norm())  # other steps are told apart
    if optimizer == "fedavg":
        assert fixed_point / 10 < difference  # the grid is what the difference is made of


def test_silos_hold_the_pool_between_them_and_clip_most_of_it(tmp_path):
    """What the test above compares is not trivial: several silos, of which none holds all."""
    made = config(write(tmp_path / "data.jsonl", short_conversations()), "server", "fedavg")
    silos = load_partition(made.data).train
    assert len(silos) == SILOS
    assert min(len(silo) for silo in silos) > 3
    assert sorted(d.id for silo in silos for d in silo) == sorted(d.id for d in pooled(made))
    model = start_model(made.model, seed=made.seed)
    records = tokenize(pooled(made), Tokenizer(model.shape.vocab_size), made.data.max_reply_bytes)
    alone = [float(central_sum(model, [record]).norm()) / CLIP for record in records[:10]]
    assert all(0 < norm <= 1 - CLIP_MARGIN + 1e-9 for norm in alone)
    assert max(alone) > 0.99


def test_noise_is_all_that_a_noisy_round_adds_to_it(tmp_path, monkeypatch):
    """Of one seed with and without noise: the difference has the variance of the released sum."""
    monkeypatch.setattr(
        fedattn.train, "poisson_sample", lambda held, _rate, _coins: list(filter(is_taken, held))
    )
    path = write(tmp_path / "data.jsonl", short_conversations())
    made, vectors = config(path, "distributed", "fedavg"), []
    for name in ("noisy", "quiet"):
        if name == "quiet":
            monkeypatch.setattr(
                SkellamSampler, "draw", lambda _self, n, _coins: np.zeros(n, np.int32)
            )
        (tmp_path / name).mkdir()
        run = simulate(made, tmp_path / name).run_dir
        model = load_model(run / "model.safetensors")
        vectors.append(read_vector(model, trainable_names(model, "all")).double())
    # threshold 3, one may collude: four shares of mu / 2 are there
    deviation = RATE * math.sqrt(2) * made.privacy.noise_multiplier * CLIP / BATCH
    noise = (vectors[0] - vectors[1]).numpy()
    assert abs(np.square(noise).mean() / deviation**2 - 1) < 5 * math.sqrt(2 / noise.size) + 0.01
