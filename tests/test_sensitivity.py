"""One step over all clients: what a device sends, and how far one conversation can move it.

The accounted sensitivity is C (`privacy.clip_norm`); gradients are clipped to C (1 - CLIP_MARGIN)
and the difference is there for float32. These tests compute batches with and without one record,
as training does, and measure how much of that margin the arithmetic uses.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import fedattn.train
from fedattn.batches import collate, pair
from fedattn.checkpoint import read_vector
from fedattn.clipping import CLIP_MARGIN
from fedattn.lora import add_low_rank
from fedattn.model import trainable_names
from fedattn.parameters import LORA_B, lora_rank
from fedattn.randomness import Randomness
from fedattn.train import noise_only, record_losses, train_locally

C = 0.1
ONE_STEP = {
    "privacy__noise": "distributed",
    "privacy__sampling_rate": 1.0,
    "privacy__clip_norm": C,
    "secagg__threshold": 3,
    "secagg__max_colluding": 1,
    "train__local_steps": 1,
}


WHICH = ["all", "bias_norm", "last_1", "lora(2)", "ffa_lora(2)"]


def with_factors(model, which):
    """The model as `which` trains it; factors B moved, or those of A have no gradient."""
    if rank := lora_rank(which):
        add_low_rank(model, rank, "ab" * 32)
        rng = torch.Generator().manual_seed(rank)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.endswith(LORA_B):
                    value.copy_(0.3 * torch.randn(value.shape, generator=rng))
    return model


@pytest.fixture
def clipped_sum(generator, tokenizer, make_config):
    """What a device with `records` sends of its batch: (d,) float64."""

    def once(records, seed=1, model=None, **changes):
        config = make_config(**{**ONE_STEP, **changes})
        model = with_factors(generator(), config.model.trainable) if model is None else model
        made = train_locally(model, tokenizer, records, config, Randomness.seeded(seed)).delta
        assert made.dtype == torch.float32
        return made.double()

    return once


@pytest.fixture
def mixed_records(make_records):
    """Records of very different lengths, shuffled: one more shifts padding and physical batches."""

    def make(count, seed=0):
        rng = random.Random(seed)
        records = make_records(count, seed)
        turns = [
            tuple(tuple(rng.randrange(200) for _ in range(rng.randint(1, 14))) for _ in range(2))
            for _ in records
        ]
        return [replace(r, turns=t) for r, t in zip(records, turns, strict=True)]

    return make


def margin_used(difference):
    """How much of CLIP_MARGIN a difference of two sums takes: 0 none, 1 all of it."""
    return (float(difference.norm()) / C - (1 - CLIP_MARGIN)) / CLIP_MARGIN


def slow_sum(model, tokenizer, records, which, clip_norm=C):
    """One record at a time in float64: gradient, clip, add."""
    exact = copy.deepcopy(model).double()
    named = dict(exact.named_parameters())
    parameters = [named[name] for name in trainable_names(model, which)]
    total = torch.zeros(sum(p.numel() for p in parameters)).double()
    for record in records:
        example = pair(record, 1, tokenizer, model.shape.context_tokens)
        batch = collate([example], tokenizer, model.shape.reply_tokens)
        logs = exact(batch.context, batch.tokens)[0].log_softmax(-1)
        loss = -logs[torch.arange(logs.shape[0]), batch.targets[0]].mean()
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        total += flat * min(1.0, clip_norm * (1 - CLIP_MARGIN) / float(flat.norm()))
    return total


@pytest.mark.parametrize("noise", ["distributed", "server"])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("clip_norm", [C, 1e6])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_sum_is_that_of_the_slow_twin(
    generator, tokenizer, clipped_sum, mixed_records, noise, which, clip_norm, size
):
    """Clipped each, summed, in the order of `read_vector`; not divided, no noise, not moved."""
    model, records = with_factors(generator(), which), mixed_records(9)
    expected = slow_sum(model, tokenizer, records, which, clip_norm)
    made = clipped_sum(
        records, model=model, privacy__noise=noise, model__trainable=which,
        privacy__clip_norm=clip_norm, train__max_physical_batch=size,
        train__expected_batch_size=77, train__learning_rate=9.0,
    )  # fmt: skip
    assert made.shape == read_vector(model, trainable_names(model, which)).shape
    assert (made - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("which", "size"),
    [(which, size) for which in WHICH[:2] for size in (1, 2, 3, 32)]
    + [(which, size) for which in WHICH[2:] for size in (3, 32)],
)
def test_a_batch_with_and_without_one_record_stays_within_the_sensitivity(
    clipped_sum, mixed_records, size, which
):
    """Each record is left out in turn; all are clipped, so the bound is nearly met."""
    records = mixed_records(24, seed=3)
    changes = {"train__max_physical_batch": size, "model__trainable": which}
    whole = clipped_sum(records, **changes)
    used = []
    for index in range(len(records)):
        without = clipped_sum(records[:index] + records[index + 1 :], **changes)
        assert (whole - without).norm() <= C
        used.append(margin_used(whole - without))
    print(f"margin used: {max(used):.2%}")  # pytest -rP
    assert min(used) > -1, "nothing was clipped, so nothing was tested"
    assert max(used) < 0.02


@pytest.mark.parametrize("size", [7, 64])
def test_the_margin_holds_for_a_thousand_records_that_point_one_way(
    clipped_sum, mixed_records, size
):
    """Equal records make sum and rounding as large as they get."""
    first, other = mixed_records(2, seed=5)
    crowd = [first] * 1000
    whole = clipped_sum(crowd, train__max_physical_batch=size)
    assert whole.norm() == pytest.approx(1000 * C * (1 - CLIP_MARGIN), rel=1e-5)
    used = []
    for neighbour in (crowd[1:], [*crowd, other], [*crowd, first]):
        difference = whole - clipped_sum(neighbour, train__max_physical_batch=size)
        assert difference.norm() <= C
        used.append(margin_used(difference))
    print(f"margin used: {max(used):.2%}")  # pytest -rP
    assert max(used) < 0.02


def enormous(losses, hit):
    return losses * torch.where(hit, 1e25, 1.0)


def overflowing(losses, hit):
    return losses * torch.where(hit, 3e38, 1.0)


def has_nan_gradient(losses, hit):
    # row by row: the backward pass of torch.where would put NaN in every row
    return torch.stack([(x * 0).sqrt() if h else x for x, h in zip(losses, hit, strict=True)])


def raises(losses, _hit):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("attack", [enormous, overflowing, has_nan_gradient, raises])
@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_one_hostile_record_stays_within_the_sensitivity(
    clipped_sum, mixed_records, monkeypatch, attack, size
):
    """Neither by its own gradient, nor by what it does to the others of its physical batch."""
    records, true_losses = mixed_records(12, seed=4), record_losses
    marked = replace(records[5], turns=((255, 7, 9), records[5].turns[1]))  # 255: no other has it
    rest = records[:5] + records[6:]
    without = clipped_sum(rest, train__max_physical_batch=size)

    def hostile(model, batch):
        losses, hit = true_losses(model, batch), (batch.context == 255).any(1)
        return attack(losses, hit) if hit.any() else losses

    monkeypatch.setattr(fedattn.train, "record_losses", hostile)
    difference = clipped_sum([*rest[:5], marked, *rest[5:]], train__max_physical_batch=size)
    difference = difference - without
    assert difference.norm() <= C
    if attack is enormous:
        assert abs(margin_used(difference)) < 0.02  # it counts for C, as any other
    elif attack in (raises, has_nan_gradient):
        assert difference.norm() < 1e-5 * C  # it counts as zero


def test_records_are_clipped_one_by_one_so_that_many_outweigh_the_clip_norm(
    clipped_sum, mixed_records
):
    first = mixed_records(1)[0]
    assert clipped_sum([first]).norm() == pytest.approx(C * (1 - CLIP_MARGIN), rel=1e-5)
    assert clipped_sum([first] * 7).norm() == pytest.approx(7 * C * (1 - CLIP_MARGIN), rel=1e-5)


def test_every_record_is_in_the_batch_independently_at_the_stated_rate(clipped_sum, mixed_records):
    """Read off the sums that leave: each is a sum of some of the records' clipped gradients."""
    records, rate, draws = mixed_records(4, seed=6), 0.3, 500
    alone = torch.stack([clipped_sum([record]) for record in records])
    taken = []
    for draw in range(draws):
        made = clipped_sum(records, draw, privacy__sampling_rate=rate)
        weights = torch.linalg.lstsq(alone.T, made).solution
        assert (weights - weights.round()).abs().max() < 1e-3
        taken.append(weights.round().numpy())
    taken = np.array(taken)
    assert set(np.unique(taken)) == {0.0, 1.0}
    bound = 5 / math.sqrt(draws)
    assert (np.abs(taken.mean(0) - rate) < bound * math.sqrt(rate * (1 - rate))).all()
    assert np.abs(np.corrcoef(taken.T) - np.eye(4)).max() < bound
    # binomial: a sampler of fixed size would leave the size of a batch no variance
    assert abs(taken.sum(1).var() - 4 * rate * (1 - rate)) < 5 * 1.2 / math.sqrt(draws)


def test_an_empty_batch_is_kept_and_contributes_exactly_zero(clipped_sum, mixed_records):
    records, rate, draws = mixed_records(2), 0.3, 200
    empty = sum(
        not clipped_sum(records, seed, privacy__sampling_rate=rate).any() for seed in range(draws)
    )
    expected = (1 - rate) ** 2
    assert abs(empty / draws - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)


def test_a_device_without_a_record_contributes_exactly_zero(
    clipped_sum, generator, tokenizer, make_config
):
    made = clipped_sum([])
    assert made.numel() == read_vector(generator(), trainable_names(generator(), "all")).numel()
    assert not made.any()
    result = noise_only(generator(), tokenizer, make_config(**ONE_STEP), Randomness.seeded(1))
    assert not result.delta.any()


def test_if_every_record_fails_the_sum_is_exactly_zero(clipped_sum, mixed_records, monkeypatch):
    monkeypatch.setattr(fedattn.train, "record_losses", lambda *_: 1 / 0)
    assert not clipped_sum(mixed_records(9)).any()


def test_a_record_without_a_reply_adds_nothing(clipped_sum, mixed_records):
    records = mixed_records(5)
    broken = [*records, replace(records[0], replies=())]
    assert torch.equal(clipped_sum(broken), clipped_sum(records))


def test_the_model_is_left_as_it_was(generator, clipped_sum, mixed_records):
    model = generator()
    before = copy.deepcopy(model.state_dict())
    first = clipped_sum(mixed_records(5), model=model)
    assert torch.equal(clipped_sum(mixed_records(5), model=model), first)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(getattr(p, "summed_grad", None) is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_the_same_seed_gives_the_same_sum_and_another_seed_another(clipped_sum, make_records):
    records = make_records(9, replies=3)
    assert torch.equal(clipped_sum(records, 5), clipped_sum(records, 5))
    assert not torch.equal(clipped_sum(records, 5), clipped_sum(records, 6))
