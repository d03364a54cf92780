"""Per-record gradients of every parameter, one record's weight in a sum, and its noise."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.batches import IGNORED, Pair, collate
from fedattn.clipping import CLIP_MARGIN, ClippedSum, PrivateOptimizer, per_record_gradients
from fedattn.config import Architecture
from fedattn.model import AttentionGenerator, trainable_names
from fedattn.noise import gaussian
from fedattn.randomness import Randomness
from fedattn.tokens import Tokenizer
from fedattn.train import record_losses

TOKENIZER = Tokenizer(257)


def make_pairs(lengths, seed=0, tokenizer=TOKENIZER):
    """Pairs of random tokens with the given (context, reply) lengths."""
    rng = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(0, 257, (n,), generator=rng).tolist()

    return [Pair([tokenizer.you, *ids(s - 1)], [*ids(t - 1), tokenizer.eos]) for s, t in lengths]


def sharpen(model, factor=1.3):
    """Make attention choose, so that queries and keys have gradients well above float32's noise."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                parameter.mul_(factor)
    return model.train()


def select(model, which):
    """Let training change the parameters of `which` alone; their names."""
    names = trainable_names(model, which)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return names


def slow_gradients(model, pair, tokenizer=TOKENIZER, losses=record_losses):
    """Autograd of one record alone: no batch, no padding, no hooks. {name: gradient}"""
    loss = losses(model, collate([pair], tokenizer))[0]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def exact_losses(model, batch):
    """As `record_losses`, in whatever precision the model has."""
    logs = model(batch.context, batch.tokens).log_softmax(-1)
    real = batch.targets != IGNORED
    picked = logs.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
    return -(picked * real).sum(1) / real.sum(1)


def slow_clipped_sum(model, pairs, clip_norm):
    """DP-SGD's sum in float64: each record's gradient cut to clip_norm (1 - CLIP_MARGIN)."""
    exact = copy.deepcopy(model).double()
    total = torch.zeros(sum(p.numel() for p in exact.parameters() if p.requires_grad)).double()
    norms = []
    for pair in pairs:
        loss = exact_losses(exact, collate([pair], TOKENIZER))[0]
        parameters = [p for p in exact.parameters() if p.requires_grad]
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        norms.append(float(flat.norm()))
        total += flat * min(1.0, clip_norm * (1 - CLIP_MARGIN) / norms[-1])
    return total, norms


def optimizer_of(parameters, *, noise_multiplier=1e-28, clip_norm=1.0, divisor=1, seed=0, rate=1.0):
    """An optimizer over plain SGD, and the sum that it steps along."""
    clipped = ClippedSum(list(parameters), clip_norm)
    return clipped, PrivateOptimizer(
        torch.optim.SGD(clipped.parameters, lr=rate),
        clipped,
        noise_multiplier=noise_multiplier,
        expected_batch_size=divisor,
        randomness=Randomness.seeded(seed),
    )


def private_sum(model, batches, clip_norm):
    """The clipped sum (d,) over physical batches."""
    with per_record_gradients(model) as gradients:
        clipped = ClippedSum(gradients.parameters, clip_norm)
        for pairs in batches:
            gradients.losses_backward(record_losses(model, collate(pairs, TOKENIZER)))
            clipped.accumulate()
        total = clipped.vector()
        clipped.forget()
        return total


# (context, reply) lengths: equal, padded on both sides at once, far apart, one record
LENGTHS = [
    [(6, 5), (6, 5), (6, 5)],
    [(3, 7), (9, 4), (6, 5), (12, 6)],
    [(40, 5), (4, 30), (33, 21)],
    [(7, 4)],
]
SHAPES = [
    {},
    {"encoder_layers": 2, "decoder_layers": 2},
    {"d_model": 24, "heads": 4, "vocab_size": 300, "decoder_layers": 3},
    {"d_model": 8, "heads": 1, "encoder_layers": 3},
]


CASES = [
    pytest.mark.parametrize("lengths", LENGTHS, ids=["equal", "both sides", "far apart", "one"]),
    pytest.mark.parametrize("shape", SHAPES, ids=["1+1", "2+2", "1+3", "3+1"]),
    pytest.mark.parametrize("which", ["all", "bias_norm"]),
]


def cases(test):
    for mark in CASES:
        test = mark(test)
    return test


def worst_error(model, names, lengths, losses):
    """The largest relative error of any record's gradient of any parameter, and where."""
    tokenizer = Tokenizer(model.shape.vocab_size)
    pairs = make_pairs(lengths, tokenizer=tokenizer)
    expected = [slow_gradients(model, pair, tokenizer, losses) for pair in pairs]
    errors = []
    with per_record_gradients(model) as gradients:
        gradients.losses_backward(losses(model, collate(pairs, tokenizer)))
        for name in names:
            made = dict(model.named_parameters())[name].grad_sample
            assert len(made) == len(pairs)
            for row, one in enumerate(expected):
                norm = float(one[name].norm())
                assert norm > 1e-4, f"{name}: choose weights with a gradient worth measuring"
                errors.append((float((made[row] - one[name]).norm()) / norm, name, row))
    return max(errors)


@cases
def test_gradients_of_every_parameter_equal_one_at_a_time_autograd(
    generator, which, shape, lengths
):
    model = sharpen(generator(4, **shape))
    worst = worst_error(model, select(model, which), lengths, record_losses)
    assert worst[0] < 1e-5, worst


@cases
def test_in_float64_they_are_equal_to_float64(generator, which, shape, lengths):
    """So that what the bound above leaves room for is rounding, not a slightly wrong formula."""
    model = generator(1, **shape).double().train()
    worst = worst_error(model, select(model, which), lengths, exact_losses)
    assert worst[0] < 1e-11, worst


def test_a_one_token_context_and_reply_have_the_right_gradient(generator):
    """Attention over one key is constant, so some gradients are zero: compare the whole."""
    model = generator(2).train()
    pairs = make_pairs([(1, 1), (9, 6), (1, 4), (5, 1)])
    expected = [slow_gradients(model, pair) for pair in pairs]
    with per_record_gradients(model) as gradients:
        gradients.losses_backward(record_losses(model, collate(pairs, TOKENIZER)))
        for row, one in enumerate(expected):
            flat = torch.cat([g.flatten() for g in one.values()])
            made = torch.cat([p.grad_sample[row].flatten() for p in gradients.parameters])
            assert (made - flat).norm() < 1e-5 * flat.norm()


def test_the_batch_sum_of_per_record_gradients_is_the_batch_gradient(generator):
    model = generator(3).train()
    batch = collate(make_pairs(LENGTHS[1]), TOKENIZER)
    plain = torch.autograd.grad(record_losses(model, batch).sum(), list(model.parameters()))
    with per_record_gradients(model) as gradients:
        gradients.losses_backward(record_losses(model, batch))
        for parameter, whole in zip(model.parameters(), plain, strict=True):
            assert torch.allclose(parameter.grad_sample.sum(0), whole, rtol=1e-4, atol=1e-6)


def test_hooks_come_and_go_without_a_trace(generator):
    model = generator().train()
    attributes = [set(vars(module)) for module in model.modules()]
    for _ in range(2):
        with per_record_gradients(model) as gradients:
            gradients.losses_backward(
                record_losses(model, collate(make_pairs([(3, 2)]), TOKENIZER))
            )
        for module, before in zip(model.modules(), attributes, strict=True):
            assert not module._forward_hooks
            assert not module._backward_hooks
            assert not module._forward_pre_hooks
            assert set(vars(module)) == before
        assert all(p.grad is None for p in model.parameters())
        assert all(getattr(p, "grad_sample", None) is None for p in model.parameters())


def test_a_failed_pass_leaves_nothing_for_the_next(generator):
    model = generator().train()
    first, second = make_pairs([(5, 4)], 1), make_pairs([(4, 6)], 2)
    clean = private_sum(model, [second], 1e9)
    with per_record_gradients(model) as gradients:
        record_losses(model, collate(first, TOKENIZER))  # forward without its backward
        gradients.reset()
        gradients.losses_backward(record_losses(model, collate(second, TOKENIZER)))
        made = torch.cat([p.grad_sample[0].flatten() for p in gradients.parameters])
    assert torch.equal(made.double(), clean)


@pytest.mark.parametrize("which", ["all", "bias_norm"])
@pytest.mark.parametrize("share", [0.3, 1.0, 3.0])
def test_the_noise_free_sum_is_that_of_the_slow_twin(generator, which, share):
    model = generator(4).train()
    select(model, which)
    pairs = make_pairs([(3, 7), (9, 3), (5, 5), (12, 2), (4, 4)])
    _, norms = slow_clipped_sum(model, pairs, 1.0)
    clip_norm = share * sorted(norms)[2]  # clips all, some or none of them
    expected, _ = slow_clipped_sum(model, pairs, clip_norm)
    made = private_sum(model, [pairs], clip_norm)
    assert (made - expected).norm() < 1e-5 * expected.norm()


def _model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        shape = Architecture(
            vocab_size=257, d_model=8, heads=2, encoder_layers=1, decoder_layers=1,
            context_tokens=12, reply_tokens=12,
        )  # fmt: skip
        return AttentionGenerator(shape)


LENGTH = st.tuples(st.integers(1, 30), st.integers(1, 20))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(LENGTH, max_size=6),
    LENGTH,
    st.integers(0, 2**16),
    st.sampled_from([1e-3, 0.5, 2.0]),
    st.integers(1, 7),
)
def test_one_record_changes_the_sum_by_at_most_the_clip_norm(others, extra, seed, clip_norm, cut):
    """Also through padding and through where physical batches are cut."""
    model = _model()
    record, *rest = make_pairs([extra, *others], seed)

    def cut_up(pairs, size):
        ordered = sorted(pairs, key=lambda pair: (len(pair.context), len(pair.reply)))
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    with_it = private_sum(model, cut_up([record, *rest], cut), clip_norm)
    without = private_sum(model, cut_up(rest, cut), clip_norm) if rest else 0.0
    assert (with_it - without).norm() <= clip_norm


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.floats(1e-3, 1e3),
    st.floats(-30, 30),
    st.integers(0, 2**16),
)
def test_one_gradient_of_any_size_changes_the_sum_by_at_most_the_clip_norm(
    n, clip_norm, size, seed
):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 500, generator=rng) * 10.0 ** (8 * torch.randn(n, 1, generator=rng))
    rows[0] = torch.randn(500, generator=rng) * 10.0**size
    assert (summed(rows, clip_norm) - summed(rows[1:], clip_norm)).norm() <= clip_norm


def summed(rows, clip_norm, size=10_000):
    """The clipped sum of given per-record gradients (B, d)."""
    parameter = torch.nn.Parameter(torch.zeros(rows.shape[1]))
    clipped = ClippedSum([parameter], clip_norm)
    for part in rows.split(size):
        parameter.grad_sample = part.clone()
        clipped.accumulate()
    return clipped.vector()


@pytest.mark.parametrize("d", [1, 3, 2000])
@pytest.mark.parametrize("size", [1, 64, 10_000])
def test_the_margin_holds_for_a_large_batch_that_points_one_way(d, size):
    """Equal signs make the sum, and so its rounding, as large as it gets."""
    rng = torch.Generator().manual_seed(d)
    rows = torch.rand(1500, d, generator=rng) + 0.1
    for index in (0, 700, 1499):
        without = torch.cat([rows[:index], rows[index + 1 :]])
        assert (summed(rows, 0.1, size) - summed(without, 0.1, size)).norm() <= 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_record_that_is_not_finite_leaves_the_others_exactly(bad, everywhere):
    rows = torch.randn(5, 60)
    zeroed = rows.clone()
    zeroed[2] = 0.0
    rows[2, slice(None) if everywhere else 7] = bad
    assert torch.equal(summed(rows, 1.0), summed(zeroed, 1.0))
    without = summed(rows[[0, 1, 3, 4]], 1.0)
    assert torch.allclose(summed(rows, 1.0), without, rtol=0, atol=1e-6)


def test_not_finite_in_one_parameter_drops_the_record_from_all_of_them():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    clipped = ClippedSum(parameters, 100.0)
    parameters[0].grad_sample = torch.ones(2, 3)
    parameters[1].grad_sample = torch.ones(2, 2, 2)
    parameters[1].grad_sample[1, 0, 1] = torch.nan
    clipped.accumulate()
    assert torch.equal(clipped.vector(), torch.ones(7).double())


def test_the_norm_is_taken_over_all_parameters_together():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 1))]
    clipped = ClippedSum(parameters, 1.0)
    parameters[0].grad_sample = torch.tensor([[2.0, 3.0]])
    parameters[1].grad_sample = torch.tensor([[[6.0]]])
    clipped.accumulate()
    expected = torch.tensor([2.0, 3.0, 6.0]).double() / 7 * (1 - CLIP_MARGIN)
    assert torch.allclose(clipped.vector(), expected, rtol=1e-12)


def test_a_batch_that_cannot_be_added_as_a_whole_is_not_added_in_part():
    """A pass that fails is repeated record by record: what it left would count twice."""
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
    clipped = ClippedSum(parameters, 1.0)
    for parameter in parameters:
        parameter.grad_sample = torch.ones(2, *parameter.shape)
    clipped.add()
    parameters[1].summed_grad = torch.zeros(17)  # fails after the first parameter's sum is made
    before = parameters[0].summed_grad.clone()
    with pytest.raises(RuntimeError, match="size"):
        clipped.add()
    assert torch.equal(parameters[0].summed_grad, before)


@pytest.mark.parametrize("bad", [0, 1])
def test_gradients_longer_than_a_chunk_are_clipped_as_a_whole(bad):
    rows = torch.randn(4, 3 * 8192 + 5)
    expected = sum(row / row.norm() for row in rows[1 + bad :].double()) + (0 if bad else 1) * (
        rows[0].double() / rows[0].double().norm()
    )
    if bad:
        rows[0, -1], rows[1, 0] = math.nan, math.inf
    else:
        rows[0] *= 1e20
    made = summed(rows, 1.0)
    assert (made - expected * (1 - CLIP_MARGIN)).norm() < 1e-6


def test_a_step_whose_sum_failed_is_taken_and_noised_all_the_same(monkeypatch):
    parameter = torch.nn.Parameter(torch.zeros(50))
    clipped, optimizer = optimizer_of([parameter], noise_multiplier=1.0)
    parameter.grad_sample = torch.ones(2, 50)
    with monkeypatch.context() as patched:
        patched.setattr(ClippedSum, "add", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            clipped.accumulate()
    optimizer.finish_step()
    assert within_chi_square(parameter.detach().double(), 1.0)


def test_a_batch_without_a_finite_record_counts_as_empty():
    assert torch.equal(summed(torch.full((3, 4), math.nan), 1.0), torch.zeros(4).double())


def test_a_gradient_whose_norm_overflows_stays_within_the_clip_norm():
    for size in (1e20, 1e38, 3.4e38):
        assert summed(torch.full((1, 900), size), 0.5).norm() <= 0.5


def displacement(*, steps=1, noise_multiplier, clip_norm, divisor, seed=0, size=20_000):
    """Where empty SGD steps of rate 1 take zeros: (size,)."""
    parameters = [torch.nn.Parameter(torch.zeros(size - 7)), torch.nn.Parameter(torch.zeros(7, 1))]
    _, optimizer = optimizer_of(
        parameters,
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        divisor=divisor,
        seed=seed,
    )
    for _ in range(steps):
        optimizer.finish_step()
    return torch.cat([p.detach().flatten() for p in parameters]).double()


def within_chi_square(values, std):
    """Whether values' squared sum is that of N(0, std^2), to 5 deviations of chi-square."""
    n = values.numel()
    return abs(float((values / std).square().sum()) - n) < 5 * math.sqrt(2 * n)


@pytest.mark.parametrize(("sigma", "clip_norm", "divisor"), [(1.0, 0.5, 1), (3.0, 2.0, 64)])
def test_an_empty_batch_moves_by_noise_of_the_stated_deviation(sigma, clip_norm, divisor):
    moved = displacement(noise_multiplier=sigma, clip_norm=clip_norm, divisor=divisor)
    std = sigma * clip_norm / divisor
    assert within_chi_square(moved, std)
    assert within_chi_square(moved[-7:], std)
    assert abs(moved.mean()) < 5 * std / math.sqrt(len(moved))
    normal = torch.distributions.Normal(0, std)
    gap = (normal.cdf(moved.sort().values) - (torch.arange(20_000) + 0.5) / 20_000).abs().max()
    assert gap * math.sqrt(20_000) < 2  # Kolmogorov-Smirnov


def test_the_same_noise_is_added_to_a_full_batch():
    rows = torch.randn(6, 4000)
    parameter = torch.nn.Parameter(torch.zeros(4000))
    clipped, optimizer = optimizer_of([parameter], noise_multiplier=2.0, clip_norm=0.5, divisor=10)
    parameter.grad_sample = rows.clone()
    clipped.accumulate()
    total = clipped.vector()
    optimizer.finish_step()
    moved = parameter.detach() * -10 - total
    assert within_chi_square(moved, 1.0)
    noise = gaussian(4000, Randomness.seeded(0))
    assert torch.allclose(moved, torch.from_numpy(noise), atol=1e-5)


def test_every_coordinate_has_its_own_noise_and_every_step_another():
    steps = torch.stack(
        [
            displacement(steps=n + 1, noise_multiplier=1.0, clip_norm=1.0, divisor=1, size=200)
            for n in range(60)
        ]
    ).diff(dim=0)  # (59 steps, 200 coordinates)
    assert len(steps.unique()) > 0.99 * steps.numel()
    assert within_chi_square(steps, 1.0)
    for variances in (steps.square().mean(0), steps.square().mean(1)):
        assert (variances > 0.3).all()
        assert (variances < 2.5).all()
    for a, b in [(steps[1:], steps[:-1]), (steps[:, 1:], steps[:, :-1])]:
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())


def test_noise_comes_from_the_given_randomness_alone():
    def run(torch_seed, seed):
        torch.manual_seed(torch_seed)
        return displacement(noise_multiplier=1.0, clip_norm=1.0, divisor=1, seed=seed, size=50)

    assert torch.equal(run(1, 7), run(2, 7))
    assert not torch.equal(run(1, 7), run(1, 8))
    state = torch.random.get_rng_state()
    displacement(noise_multiplier=1.0, clip_norm=1.0, divisor=1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("records", [1, 3, 10])
def test_the_divisor_is_the_public_number_not_the_batch_size(records):
    parameter = torch.nn.Parameter(torch.zeros(4))
    clipped, optimizer = optimizer_of([parameter], clip_norm=1e6, divisor=5)
    parameter.grad_sample = torch.ones(records, 4)
    clipped.accumulate()
    optimizer.finish_step()
    assert torch.allclose(parameter.detach(), torch.full((4,), -records / 5))


def test_a_step_starts_from_an_empty_sum():
    parameter = torch.nn.Parameter(torch.zeros(4))
    clipped, optimizer = optimizer_of([parameter], clip_norm=1e6)
    for expected in (-1.0, -2.0):
        parameter.grad_sample = torch.ones(1, 4)
        clipped.accumulate()
        optimizer.finish_step()
        assert torch.allclose(parameter.detach(), torch.full((4,), expected))
    optimizer.finish_step()
    assert torch.allclose(parameter.detach(), torch.full((4,), -2.0))
