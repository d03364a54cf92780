"""One backward pass gives the same clipped sums as every per-record gradient in memory."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedattn.clipping.factors as factors
from fedattn.batches import Batch, collate
from fedattn.clipping import (
    CLIP_MARGIN,
    CLIP_MARGIN_BFLOAT16,
    BookKeeping,
    KeptSum,
    clipped_gradients,
)
from fedattn.clipping.kept_sum import _CANCELLED
from fedattn.config import Architecture
from fedattn.errors import ConfigError, ModelError
from fedattn.model import AttentionGenerator
from fedattn.randomness import Randomness
from fedattn.tokens import Tokenizer
from fedattn.train import padded, record_losses, train_locally
from tests.test_clipping import TOKENIZER, make_pairs, select, sharpen

LENGTHS = [(3, 7), (9, 4), (6, 5), (12, 6), (40, 30), (33, 2)]


def sums(model, losses, method, clip_norm, draws=1, precision="float32"):
    """The clipped sum of one pass by parameter name, float64."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with clipped_gradients(model, method, clip_norm, draws, precision) as (gradients, total):
        gradients.losses_backward(losses())
        total.accumulate()
        return {
            name: torch.zeros_like(p).double() if p.summed_grad is None else p.summed_grad.double()
            for name, p in named.items()
        }


def slow_sums(model, losses, clip_norm, draws=1):
    """Each record's gradient by autograd, alone, in float64; then clipped and added."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = losses()
    total = {name: torch.zeros_like(p).double() for name, p in named.items()}
    for record in rows.view(-1, draws).mean(1):
        made = torch.autograd.grad(
            record, list(named.values()), retain_graph=True, allow_unused=True
        )
        gradient = {
            n: torch.zeros_like(p).double() if g is None else g.double()
            for (n, p), g in zip(named.items(), made, strict=True)
        }
        norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
        share = min(1.0, clip_norm * (1 - CLIP_MARGIN) / float(norm)) if norm else 1.0
        for name, value in gradient.items():
            total[name] += share * value
    return total


def error(made, expected):
    """The largest relative error of a parameter's sum; of exact zero, its norm."""
    return max(
        float((made[name] - value).norm() / (value.norm() if value.norm() else 1.0))
        for name, value in expected.items()
    )


def batch_of(model, lengths, seed=0):
    tokenizer = Tokenizer(model.shape.vocab_size)
    return collate(make_pairs(lengths, seed, tokenizer), tokenizer)


def median_norm(model, losses):
    with clipped_gradients(model, "hooks", 1.0) as (gradients, _):
        gradients.losses_backward(losses())
        squares = [p.grad_sample.flatten(1).square().sum(1) for p in gradients.parameters]
        return float(torch.stack(squares).sum(0).sqrt().median())


@pytest.mark.parametrize("which", ["all", "bias_norm"])
@pytest.mark.parametrize("share", [0.1, 1.0, 100.0])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"d_model": 24, "heads": 4, "vocab_size": 300, "decoder_layers": 3},
        {"encoder_layers": 2},
    ],
    ids=str,
)
def test_every_parameter_s_sum_is_that_of_hooks(generator, which, share, shape):
    model = sharpen(generator(**shape))
    select(model, which)
    batch = batch_of(model, LENGTHS)
    clip_norm = share * median_norm(model, lambda: record_losses(model, batch))
    expected = sums(model, lambda: record_losses(model, batch), "hooks", clip_norm)
    made = sums(model, lambda: record_losses(model, batch), "book_keeping", clip_norm)
    assert error(made, expected) < 1e-5


@pytest.mark.parametrize("seed", range(12))
def test_any_choice_of_frozen_parameters_gives_the_sums_of_hooks(generator, seed):
    model, rng = sharpen(generator()), random.Random(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(rng.random() < 0.3)
    model.decoder[0].feed.up.bias.requires_grad_()  # (one at least)
    batch = batch_of(model, LENGTHS[:4])
    expected = slow_sums(model, lambda: record_losses(model, batch), 0.05)
    assert (
        error(sums(model, lambda: record_losses(model, batch), "book_keeping", 0.05), expected)
        < 1e-5
    )


@pytest.mark.parametrize("which", ["all", "bias_norm"])
@pytest.mark.parametrize("draws", [2, 3])
@pytest.mark.parametrize("method", ["book_keeping", "hooks"])
def test_draws_of_one_record_have_one_norm_that_of_their_mean(generator, which, draws, method):
    model = sharpen(generator())
    select(model, which)
    batch = batch_of(model, LENGTHS)
    made = sums(model, lambda: record_losses(model, batch), method, 0.05, draws)
    assert error(made, slow_sums(model, lambda: record_losses(model, batch), 0.05, draws)) < 1e-5


def test_draws_that_cancel_leave_the_record_unclipped(generator):
    """One norm of the mean: the parts of a record may be larger than it."""
    model = sharpen(generator())
    select(model, "all")
    batch = batch_of(model, [(5, 4), (5, 4)])
    twice = Batch(*(part[[0, 0]] for part in (batch.context, batch.tokens, batch.targets)))

    def losses():
        return record_losses(model, twice) * torch.tensor([1.0, -0.9])

    made = sums(model, losses, "book_keeping", 1e3, draws=2)
    assert error(made, slow_sums(model, losses, 1e3, draws=2)) < 1e-4
    limit = 0.05 * float(torch.cat([v.flatten() for v in made.values()]).norm())
    cut = sums(model, losses, "book_keeping", limit, draws=2)
    norm = float(torch.cat([v.flatten() for v in cut.values()]).norm())
    assert norm == pytest.approx(limit * (1 - CLIP_MARGIN), rel=1e-4)


@pytest.mark.parametrize("extra", [(1, 0), (0, 3), (17, 9)])
def test_padding_changes_nothing(generator, extra):
    model = sharpen(generator())
    select(model, "all")
    batch = batch_of(model, LENGTHS[:4])
    more = Batch(
        F.pad(batch.context, (extra[0], 0), value=model.pad),
        F.pad(batch.tokens, (0, extra[1]), value=model.pad),
        F.pad(batch.targets, (0, extra[1]), value=-100),
    )
    narrow = sums(model, lambda: record_losses(model, batch), "book_keeping", 0.05)
    wide = sums(model, lambda: record_losses(model, more), "book_keeping", 0.05)
    assert error(wide, narrow) < 1e-5


class Zoo(nn.Module):
    """Every kind of layer that has a rule, in every way of calling it."""

    def __init__(self, vocabulary=11, d=6, *, is_tied=True):
        super().__init__()
        self.table = nn.Embedding(vocabulary, d, padding_idx=0)
        self.other = nn.Embedding(5, d)
        self.norm, self.root = nn.LayerNorm(d), nn.RMSNorm(d, eps=1e-5)
        self.bare = nn.LayerNorm(d, elementwise_affine=False)
        self.shared = nn.Linear(d, d)
        self.wide, self.narrow = nn.Linear(d, 5 * d, bias=False), nn.Linear(5 * d, d)
        self.flat = nn.Linear(d, 3)
        self.unused = nn.Linear(2, 2)
        self.out = nn.Linear(d, vocabulary)
        if is_tied:
            self.out.weight = self.table.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.7)

    def forward(self, ids, kinds):
        x = self.table(ids) + self.other(kinds)[:, None]
        x = x + self.shared(self.norm(x))
        x = x + self.shared(self.table(ids.flip(1)))  # the layer again, and the table
        x = self.root(x + self.narrow(F.gelu(self.wide(self.bare(x)))))
        logits = self.out(x)
        summary = self.flat(x.mean(1))  # without places
        rows = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(1)
        return rows + summary.square().sum(1) + self.out(x.amax(1)).logsumexp(1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("clip_norm", [0.1, 1e4])
@pytest.mark.parametrize("is_tied", [True, False])
def test_layers_called_often_tied_or_not_at_all_have_their_gradient(seed, clip_norm, is_tied):
    torch.manual_seed(seed)
    model = Zoo(is_tied=is_tied).double().float()
    ids, kinds = torch.randint(0, 11, (5, 9)), torch.randint(0, 5, (5,))
    made = sums(model, lambda: model(ids, kinds), "book_keeping", clip_norm)
    assert error(made, slow_sums(model, lambda: model(ids, kinds), clip_norm)) < 1e-5


@pytest.mark.parametrize("block", [2, 5, 64])
@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("wide", [3, 40])
def test_both_ways_to_a_norm_agree_whatever_is_cheaper(monkeypatch, block, at_once, wide):
    monkeypatch.setattr(factors, "_BLOCK", block)
    monkeypatch.setattr(factors, "_MADE_AT_ONCE", at_once)
    torch.manual_seed(0)
    x, grad = torch.randn(4, 13, wide), torch.randn(4, 13, wide)
    shared = factors.SharedInput(x)
    shared.add(nn.Parameter(torch.zeros(wide, wide)), grad)
    shared.add(nn.Parameter(torch.zeros(7, wide)), other := torch.randn(4, 13, 7))
    made = (grad.transpose(1, 2).double() @ x.double()).square().sum((1, 2))
    made += (other.transpose(1, 2).double() @ x.double()).square().sum((1, 2))
    assert torch.allclose(shared.squares()[0].double(), made, rtol=1e-5)
    exact = torch.stack(
        [sum(each.square().sum() for _, each in shared.exact(record)) for record in range(4)]
    )
    assert torch.allclose(exact, made, rtol=1e-10)


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.known = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.known(x) * self.scale


def test_a_parameter_without_a_rule_is_refused_by_name():
    for model, name in [
        (nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 1)), "1.weight (Conv1d)"),
        (nn.Sequential(Strange()), "0.scale (Strange)"),
        (nn.Sequential(type("Own", (nn.Linear,), {})(3, 3)), "0.weight (Own)"),
    ]:
        with pytest.raises(ModelError, match="no rule") as caught:
            BookKeeping(model)
        assert name in str(caught.value)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.dim() == 9)  # frozen, it needs none
        BookKeeping(model).close()


def test_weights_shared_in_another_way_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ModelError, match=r"1.weight .shared by Linear, Linear"):
        BookKeeping(model)


def test_an_embedding_that_changes_its_own_gradient_is_refused():
    model = nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True))
    with pytest.raises(ModelError, match="scale_grad_by_freq"):
        BookKeeping(model)


def kept(model, losses, clip_norm):
    """The flat clipped sum and whether every record's norm was computed again in float64."""
    book = BookKeeping(model)
    total = KeptSum(book, clip_norm)
    book.losses_backward(losses())
    total.add()
    found = total.vector()
    total.forget()
    book.close()
    return found


@pytest.mark.parametrize("closeness", [0.0, 1e-7, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("places", [2, 32, 128])
def test_a_record_whose_places_cancel_stays_within_the_clip_norm(closeness, scale, places):
    """An adversary's record: huge gradients at places that cancel but for a little.

    Its ghost norm alone would be the rounding of large numbers, and could come out near zero.
    """
    torch.manual_seed(1)
    layer = nn.Linear(64, 48)
    x = torch.randn(1, 1, 64).expand(1, places, 64).clone()
    x += closeness * torch.randn_like(x)
    weights = torch.tensor([1.0, -1.0]).repeat(places // 2)[None, :, None] * torch.randn(1, 1, 48)

    def losses():
        return (layer(x) * weights * scale).sum((1, 2))

    made = kept(layer, losses, 1.0)
    assert float(made.norm()) <= 1.0


def hostile_factors(rng, places, wide, high):
    """Factors of one record that cancel as well as float32 lets them."""
    x = torch.randn(places, wide, generator=rng) * 10 ** (6 * torch.rand(1, generator=rng))
    grad = torch.randn(places, high, generator=rng)
    half = int(places // 2 * torch.rand(1, generator=rng) ** 2)
    noise = 10 ** (-8 * torch.rand(1, generator=rng))
    x[half : 2 * half] = x[:half] * (1 + noise * torch.randn(half, 1, generator=rng))
    grad[half : 2 * half] = -grad[:half]
    return x[None], grad[None]


def test_the_margin_holds_for_hostile_records_that_are_just_trusted():
    """What float32 makes of a record may exceed the clip norm by less than the margin is wide.

    Records are made to cancel; those that do so too much are not computed this way.
    """
    rng, worst, trusted = torch.Generator().manual_seed(3), 0.0, 0
    for trial in range(600):
        places, wide, high = [(8, 32, 32), (64, 16, 40), (128, 96, 64)][trial % 3]
        x, grad = hostile_factors(rng, places, wide, high)
        shared = factors.SharedInput(x)
        shared.add(nn.Parameter(torch.zeros(high, wide)), grad)
        squares, apart, extreme = shared.squares()
        if extreme or not (squares >= _CANCELLED * apart):
            continue
        trusted += 1
        ((_, made),) = shared.sums((1 / squares.sqrt()).float())
        worst = max(worst, float(made.double().norm()) - 1)
    print(f"{trusted} records, clip norm exceeded by at most {worst:.1e}")  # pytest -rP
    assert trusted > 50
    assert worst < CLIP_MARGIN / 10


@pytest.mark.parametrize(
    ("x", "grad"), [(7e17, 1.5e-23), (1.5e-23, 7e17), (1e-30, 1e18), (1.0, 1e-24)]
)
@pytest.mark.parametrize("size", [16, 512])
def test_factors_whose_squares_underflow_stay_within_the_clip_norm(x, grad, size):
    """x . x or g . g is zero in float32, and the product of both is not."""
    layer = nn.Linear(size, size, bias=False)
    given, weights = torch.full((1, 32, size), x), torch.full((1, 32, size), grad)
    made = kept(layer, lambda: (layer(given) * weights).sum((1, 2)), 0.1)
    assert float(made.norm()) <= 0.1


def test_a_repeated_token_whose_gradients_cancel_stays_within_the_clip_norm():
    """The tied table's part is exactly zero; a rounding of its product with the head is not."""
    places, wide = 64, 64
    for seed in range(150):
        torch.manual_seed(seed)
        table, head = nn.Embedding(50, wide), nn.Linear(wide, 50, bias=False)
        head.weight = table.weight
        model = nn.ModuleList([table, head])
        flows = torch.randn(1, places - 1, wide).mul(10 ** (4 + 1.3 * torch.rand(1).item())).round()
        flows = torch.cat([flows, -flows.sum(1, keepdim=True)], 1)  # whole numbers: exact
        x, out = torch.randn(1, 1, wide), torch.zeros(1, 1, 50)
        out[..., 3] = 0.05

        def losses(table=table, head=head, flows=flows, x=x, out=out):
            e = table(torch.full((1, places), 3))
            return (e * flows).sum((1, 2)) + (head(x + 0 * e[:, :1]) * out).sum((1, 2))

        assert float(kept(model, losses, 0.1).norm()) <= 0.1, seed


def test_a_sum_that_cannot_be_added_is_added_in_no_part(generator, monkeypatch):
    """Memory may run out between two parameters; the halves of the batch are then added anew."""
    model = sharpen(generator())
    select(model, "all")
    batch = batch_of(model, LENGTHS[:3])
    with clipped_gradients(model, "book_keeping", 0.05) as (gradients, total):
        gradients.losses_backward(record_losses(model, batch))
        total.accumulate()
        before = total.vector()
        gradients.losses_backward(record_losses(model, batch))
        honest, left = torch.Tensor.double, iter([True] * 19)

        def fails(self):
            if next(left, None) is None:
                raise MemoryError
            return honest(self)

        monkeypatch.setattr(torch.Tensor, "double", fails)
        with pytest.raises(MemoryError):
            total.accumulate()
        monkeypatch.undo()
        assert torch.equal(total.vector(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["all", "bias_norm"])
def test_a_record_that_is_not_finite_leaves_the_others(generator, bad, which):
    model = sharpen(generator())
    select(model, which)
    batch = batch_of(model, LENGTHS[:4])
    good = Batch(*(part[[0, 1, 3]] for part in (batch.context, batch.tokens, batch.targets)))
    weights = torch.tensor([1.0, 1.0, bad, 1.0])
    made = sums(model, lambda: record_losses(model, batch) * weights, "book_keeping", 0.05)
    expected = sums(model, lambda: record_losses(model, good), "book_keeping", 0.05)
    assert error(made, expected) < 1e-5


@pytest.mark.parametrize("which", ["all", "bias_norm"])
def test_a_gradient_whose_square_overflows_counts_with_the_clip_norm(generator, which):
    model = sharpen(generator())
    select(model, which)
    batch = batch_of(model, LENGTHS[:3])
    weights = torch.tensor([1.0, 1e25, 1.0])
    made = sums(model, lambda: record_losses(model, batch) * weights, "book_keeping", 0.05)
    expected = slow_sums(model, lambda: record_losses(model, batch), 0.05)  # (all are clipped)
    assert error(made, expected) < 1e-5


def test_passes_are_added_and_an_empty_sum_stays_empty(generator):
    model = sharpen(generator())
    select(model, "all")
    batch = batch_of(model, LENGTHS)
    halves = [
        Batch(*(part[rows] for part in (batch.context, batch.tokens, batch.targets)))
        for rows in (slice(0, 4), slice(4, 6))
    ]
    whole = sums(model, lambda: record_losses(model, batch), "book_keeping", 0.05)
    with clipped_gradients(model, "book_keeping", 0.05) as (gradients, total):
        total.add()
        assert all(p.summed_grad is None for p in gradients.parameters)
        for half in halves:
            gradients.losses_backward(record_losses(model, half))
            total.accumulate()
        named = dict(model.named_parameters())
        made = {name: named[name].summed_grad.double() for name in whole}
    assert error(made, whole) < 1e-5


def test_no_gradient_of_a_weight_is_stored_and_hooks_leave_no_trace(generator):
    model = sharpen(generator())
    names = select(model, "all")
    batch = batch_of(model, LENGTHS[:2])
    before = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    with clipped_gradients(model, "book_keeping", 0.05) as (gradients, _):
        gradients.losses_backward(record_losses(model, batch))
        assert all(p.grad is None for p in model.parameters())
        with torch.no_grad():
            model(batch.context, batch.tokens)  # noted down nowhere
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == before
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names


# bfloat16


def low_losses(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return record_losses(model, batch)


def test_in_bfloat16_the_sum_is_near_float32_s_and_no_record_passes_the_clip_norm(generator):
    model = sharpen(generator(d_model=32))
    select(model, "all")
    for lengths in ([(12, 9)], [(40, 30)], [(3, 2)]):
        batch = batch_of(model, lengths)
        low = sums(model, lambda b=batch: low_losses(model, b), "book_keeping", 1e-3, 1, "bfloat16")
        high = sums(model, lambda b=batch: record_losses(model, b), "book_keeping", 1e-3)
        flat_low, flat_high = (
            torch.cat([v.flatten() for v in each.values()]) for each in (low, high)
        )
        assert float(flat_low.norm()) == pytest.approx(1e-3 * (1 - CLIP_MARGIN_BFLOAT16), rel=1e-5)
        assert float((flat_low - flat_high).norm()) < 0.1 * 1e-3


@pytest.mark.parametrize("which", ["all", "bias_norm"])
def test_in_bfloat16_a_batch_with_and_without_one_record_stays_within_the_clip_norm(which):
    """Adversarial: the record is as long as possible, others are short, all are clipped."""
    torch.manual_seed(0)
    shape = Architecture(
        vocab_size=300, d_model=32, heads=4, encoder_layers=1, decoder_layers=1,
        context_tokens=64, reply_tokens=48,
    )  # fmt: skip
    model = sharpen(AttentionGenerator(shape))
    tokenizer = Tokenizer(300)
    select(model, which)
    rng = random.Random(4)
    others = [(rng.randint(2, 60), rng.randint(2, 40)) for _ in range(40)]
    clip_norm, worst = 1e-3, 0.0

    def total(lengths):
        """As training does: only examples of equal padded lengths share a pass."""
        buckets = {}
        for number, (s, t) in enumerate(lengths):
            buckets.setdefault((-(-s // 16), -(-t // 16)), []).append((number, (s, t)))
        with clipped_gradients(model, "book_keeping", clip_norm, 1, "bfloat16") as (passes, made):
            for alike in buckets.values():
                pairs = [make_pairs([size], seed, tokenizer)[0] for seed, size in alike]
                batch = padded(collate(pairs, tokenizer), tokenizer.pad, 64, 48)
                passes.losses_backward(low_losses(model, batch))
                made.accumulate()
            return made.vector()

    without = total(others)
    for size in [(64, 48), (2, 2), (17, 33), (60, 40)]:
        difference = total([*others, size]) - without
        worst = max(worst, float(difference.norm()) / clip_norm - (1 - CLIP_MARGIN_BFLOAT16))
    print(f"of the margin used: {worst / CLIP_MARGIN_BFLOAT16:.2%}")  # pytest -rP
    assert worst < CLIP_MARGIN_BFLOAT16 / 2


@pytest.mark.parametrize(
    ("length", "most", "filled"), [(1, 48, 16), (16, 48, 16), (17, 48, 32), (33, 40, 40), (9, 8, 9)]
)
def test_lengths_are_filled_up_to_sixteens_or_to_the_most_there_are(length, most, filled):
    given = torch.ones(2, length, dtype=torch.int64)
    made = padded(Batch(given, given, given), 7, most, most)
    assert {part.shape for part in (made.context, made.tokens, made.targets)} == {(2, filled)}
    assert (made.context[:, : filled - length] == 7).all()
    assert (made.tokens[:, length:] == 7).all()
    assert (made.targets[:, length:] == -100).all()


def test_training_pads_by_a_record_s_own_length(
    generator, tokenizer, make_config, make_records, monkeypatch
):
    import fedattn.train

    seen = []

    def spy(model, batch):
        seen.append((batch.context.shape[1], batch.tokens.shape[1]))
        return record_losses(model, batch)

    monkeypatch.setattr(fedattn.train, "record_losses", spy)
    config = make_config(privacy__sampling_rate=1.0)
    train_locally(generator(), tokenizer, make_records(6), config, Randomness.seeded(0))
    assert seen
    assert all((s, t) == (12, 8) for s, t in seen)  # the most that this model takes


def test_the_methods_train_the_same_model(generator, tokenizer, make_config, make_records):
    records = make_records(9, replies=3)
    changes = {"privacy__sampling_rate": 0.8, "privacy__noise_multiplier": 0.8}
    deltas = {}
    for method in ("hooks", "book_keeping"):
        config = make_config(**changes, train__clipping=method, model__trainable="bias_norm")
        made = train_locally(generator(), tokenizer, records, config, Randomness.seeded(1))
        deltas[method] = made.delta
    assert (deltas["book_keeping"] - deltas["hooks"]).norm() < 1e-5 * deltas["hooks"].norm()


def test_several_draws_train_and_are_drawn_independently(
    generator, tokenizer, make_config, make_records
):
    records = make_records(5, replies=4)
    changes = {"privacy__sampling_rate": 1.0, "train__draws": 3}
    made = {}
    for method in ("hooks", "book_keeping"):
        config = make_config(**changes, train__clipping=method)
        made[method] = train_locally(
            generator(), tokenizer, records, config, Randomness.seeded(1)
        ).delta
    assert (made["hooks"] - made["book_keeping"]).norm() < 1e-5 * made["hooks"].norm()
    one = make_config(privacy__sampling_rate=1.0)
    other = train_locally(generator(), tokenizer, records, one, Randomness.seeded(1)).delta
    assert (made["hooks"] - other).norm() > 1e-3 * other.norm()


@pytest.mark.parametrize(
    "changes",
    [
        {"train__clipping": "hooks", "train__precision": "bfloat16"},
    ],
    ids=str,
)
def test_what_a_method_cannot_do_is_refused_with_the_remedy(make_config, changes):
    with pytest.raises(ConfigError, match="goes with `clipping: book_keeping`"):
        make_config(**changes)


def test_a_frozen_copy_is_untouched(generator):
    model = generator()
    select(model, "bias_norm")
    before = copy.deepcopy(model.state_dict())
    batch = batch_of(model, LENGTHS[:2])
    sums(model, lambda: record_losses(model, batch), "book_keeping", 0.05)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert TOKENIZER.vocab_size == 257
