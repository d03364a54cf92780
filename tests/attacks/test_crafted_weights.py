"""A server that crafts weights to see one record by what it does to the others.

It may send any weights, NaN included, and knows every other record. With and without one record the
clipped sums must be at most the clip norm apart all the same.
"""

from __future__ import annotations

import math

import pytest
import torch

from fedattn.attention import distance_buckets
from fedattn.batches import Record
from fedattn.clipping import CLIP_MARGIN
from fedattn.lora import LowRankLinear, add_low_rank
from fedattn.parameters import lora_rank
from fedattn.randomness import Randomness
from fedattn.train import train_locally

C = 0.1
SUMMED = {
    "privacy__noise": "distributed",
    "privacy__sampling_rate": 1.0,
    "privacy__clip_norm": C,
    "train__local_steps": 1,
    "train__expected_batch_size": 20,
    "secagg__max_colluding": 1,
    "secagg__threshold": 3,
}


def conversation(context, reply, seed):
    """A record whose one example has so many context and reply tokens, markers left aside."""
    stream = torch.Generator().manual_seed(seed)
    turns = (torch.randint(0, 257, (n,), generator=stream).tolist() for n in (context, reply))
    return Record((0, 1), tuple(tuple(turn) for turn in turns), (1,))


def far_bias(model, value):
    """What attention adds for a distance that only a longer context has."""
    far = distance_buckets(torch.tensor([0]), torch.tensor([20]), bidirectional=True).item()
    model.encoder[0].attention.bias.weight[far] = value


def poisoned_padding(model, value):
    """An embedding of <pad> whose products overflow."""
    model.embedding.weight[model.pad] = 0
    model.embedding.weight[model.pad, 0] = value
    model.norm_out.weight[0] = 0
    model.norm_out.bias[0] = -1


def large_values(model, value):
    """Attention's output is a small difference of large numbers, so that rounding decides."""
    blocks = [layer.attention for layer in model.encoder] + [x.cross for x in model.decoder]
    for block in blocks:
        size = block.out.weight.shape[0]
        block.out.weight.copy_(torch.eye(size))
        block.value.bias.copy_(value * (1 + torch.arange(size) / 7))
        block.out.bias.copy_(-block.value.bias)


def huge_factors(model, value):
    """Low-rank factors whose products are large: gradients of each are the other's size."""
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            layer.lora_a.weight.mul_(value)
            layer.lora_b.weight.normal_(generator=torch.Generator().manual_seed(1)).mul_(value)


def unlike_factors(model, value):
    """One factor as small as the other is large: norms are sums of both."""
    huge_factors(model, value)
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            layer.lora_a.weight.div_(value * value)


UNPADDED = (15, 15)  # with markers, sixteen: what lengths are filled up to
ATTACKS = [
    (far_bias, math.nan, "bias_norm"),
    (far_bias, math.inf, "bias_norm"),
    (poisoned_padding, 1e37, "all"),
    (poisoned_padding, math.nan, "all"),
    (large_values, 1e4, "bias_norm"),
    (large_values, 1e8, "all"),
    (large_values, 1e8, "lora(2)"),
    (far_bias, math.nan, "lora(2)"),
    (huge_factors, 1e4, "lora(2)"),
    (huge_factors, math.inf, "lora(2)"),
    (unlike_factors, 1e15, "lora(2)"),
    (unlike_factors, 1e18, "ffa_lora(2)"),
    (poisoned_padding, 1e37, "ffa_lora(2)"),
]


@pytest.mark.parametrize("clipping", ["book_keeping", "hooks"])
@pytest.mark.parametrize(
    ("attack", "value", "which"), ATTACKS, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_one_record_of_another_length_moves_the_sum_by_at_most_the_clip_norm(
    generator, tokenizer, make_config, attack, value, which, clipping
):
    config = make_config(**SUMMED, model__trainable=which, train__clipping=clipping)

    def total(records):
        model = generator(context_tokens=32, reply_tokens=32)
        if rank := lora_rank(which):
            add_low_rank(model, rank, "ab" * 32)
        with torch.no_grad():
            attack(model, value)
        return train_locally(model, tokenizer, records, config, Randomness.seeded(0)).delta

    others = [conversation(*UNPADDED, seed) for seed in range(20)]
    without = total(others)
    moved = {}
    for longer in [(25, 15), (15, 25), (25, 25), (3, 3)]:
        moved[longer] = float((total([*others, conversation(*longer, 99)]) - without).norm()) / C
    assert all(move <= 1 for move in moved.values()), moved  # (NaN is no bound)


@pytest.mark.parametrize("clipping", ["book_keeping", "hooks"])
def test_one_record_zeroes_no_other(generator, tokenizer, make_config, clipping):
    """The attack that a masked place multiplies to NaN: twenty records would be gone."""
    config = make_config(**SUMMED, model__trainable="bias_norm", train__clipping=clipping)
    model = generator(context_tokens=32, reply_tokens=32)
    with torch.no_grad():
        far_bias(model, math.nan)
    others = (conversation(*UNPADDED, seed) for seed in range(20))
    records = [*others, conversation(25, 15, 99)]
    delta = train_locally(model, tokenizer, records, config, Randomness.seeded(0)).delta
    assert float(delta.norm()) > 5 * C * (1 - CLIP_MARGIN)
