"""Low-rank changes: no change at first, exact gradients, one plain model in the end."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fedattn.batches import collate
from fedattn.checkpoint import load_model, make_start, model_sha256, save_model, start_model
from fedattn.clipping import clipped_gradients
from fedattn.config import Architecture, ModelConfig
from fedattn.errors import ConfigError
from fedattn.lora import ALPHA, LowRankLinear, add_low_rank, first_factor, plain_weights
from fedattn.parameters import parameter_shapes
from fedattn.start import start_facts
from fedattn.train import record_losses
from tests.conftest import SHAPE
from tests.test_book_keeping import LENGTHS, error, slow_sums, sums
from tests.test_clipping import TOKENIZER, make_pairs, select, sharpen, slow_gradients

HASH = "ab" * 32


def adapted(generator, rank=3, *, is_moved=True, **shape):
    """A small generator with factors; moved: B is not zero."""
    model = sharpen(generator(**shape))
    add_low_rank(model, rank, HASH)
    if is_moved:
        rng = torch.Generator().manual_seed(rank)
        for layer in low_rank_layers(model).values():
            with torch.no_grad():
                b = layer.lora_b.weight
                b.copy_(0.3 * torch.randn(b.shape, generator=rng))
    return model


def low_rank_layers(model):
    return {n: each for n, each in model.named_modules() if isinstance(each, LowRankLinear)}


def logits(model):
    batch = collate(make_pairs(LENGTHS[:4]), TOKENIZER)
    with torch.no_grad():
        return model(batch.context, batch.tokens)


def test_at_first_the_model_computes_what_it_did_bit_for_bit(generator):
    assert torch.equal(logits(adapted(generator, is_moved=False)), logits(sharpen(generator())))
    assert not torch.equal(logits(adapted(generator)), logits(sharpen(generator())))


def test_every_linear_layer_but_the_head_has_factors(generator):
    model = adapted(generator, decoder_layers=2)
    linear = {n for n, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    outer = {name for name in linear if ".lora_" not in name}
    assert outer - set(low_rank_layers(model)) == {"head"}
    assert len(low_rank_layers(model)) == 6 + 2 * 10


def test_the_start_is_named_by_what_is_installed_and_nothing_is_drawn():
    state = torch.random.get_rng_state()
    plain = ModelConfig(start="random", architecture=Architecture(**SHAPE))
    low = plain.model_copy(update={"trainable": "lora(2)"})
    assert make_start(low).sha256 == make_start(plain).sha256
    assert make_start(low, seed=3).sha256 != make_start(low).sha256
    model, again = start_model(low), start_model(low)
    assert model_sha256(model) == model_sha256(again) != make_start(low).sha256
    assert torch.equal(torch.random.get_rng_state(), state)
    public = ModelConfig(trainable="lora(2)")
    assert make_start(public).sha256 == start_facts(public).sha256


def test_a_rank_above_the_width_is_refused(generator):
    with pytest.raises(ConfigError, match="rank 17 is above d_model, 16"):
        adapted(generator, 17)
    adapted(generator, 16)


def test_the_first_factor_is_made_of_philox_s_words():
    """From the cipher's definition (Salmon et al. 2011, Philox 4x64-10), written out."""
    name = "decoder.0.feed.up.lora_a.weight"
    digest = hashlib.sha256(f"fedattn/v1/lora-a/{HASH}/{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "big")
    words = [w for block in range(1, 3) for w in philox(block, key)]
    made = first_factor(HASH, name, 2, 4).flatten()
    assert made.dtype == np.float32
    units = np.array([2 * (w >> 41) + 1 - (1 << 23) for w in words], np.float64) / (1 << 23)
    assert np.allclose(made, units * (3 / 4) ** 0.5, rtol=2e-7, atol=0)


def philox(counter, key):
    """Ten rounds on four 64-bit words; numpy counts blocks from one."""
    whole = (1 << 64) - 1
    c = [counter, 0, 0, 0]
    k = [key & whole, key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [
            (second >> 64) ^ c[1] ^ k[0], second & whole,
            (first >> 64) ^ c[3] ^ k[1], first & whole,
        ]  # fmt: skip
        k = [(k[0] + 0x9E3779B97F4A7C15) & whole, (k[1] + 0xBB67AE8584CAA73B) & whole]
    return c


@given(rank=st.integers(1, 8), more=st.integers(0, 8), given_=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_smaller_rank_has_the_first_rows_of_a_larger(rank, more, given_):
    few, many = (first_factor(HASH, "x", count, given_) for count in (rank, rank + more))
    assert np.array_equal(few, many[:rank])
    assert np.abs(many).max() < (3 / given_) ** 0.5


def test_first_factors_differ_by_layer_and_start_and_have_variance_one_over_the_width():
    made = [first_factor(h, n, 16, 192) for h, n in [(HASH, "a"), (HASH, "b"), ("cd" * 32, "a")]]
    for one in made:
        assert np.var(one) * 192 == pytest.approx(1, abs=0.08)
        assert abs(np.mean(one)) * 192**0.5 < 0.08
        assert sum(np.array_equal(one, other) for other in made) == 1


def both_sums(model, which, method, clip_norm=0.05, draws=1):
    """What clipping makes of a batch in which `which` is trained, and its slow twin, by name."""
    names = select(model, which)
    batch = collate(make_pairs(LENGTHS), TOKENIZER)

    def losses():
        return record_losses(model, batch)

    made = sums(model, losses, method, clip_norm, draws)
    assert list(made) == names
    return made, slow_sums(model, losses, clip_norm, draws)


@pytest.mark.parametrize("method", ["book_keeping", "hooks"])
@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("clip_norm", [0.05, 1e4])
@pytest.mark.parametrize("rank", [1, 3, 16])
def test_clipped_sums_are_those_of_one_example_at_a_time(generator, rank, clip_norm, draws, method):
    model = adapted(generator, rank, decoder_layers=2)
    made, expected = both_sums(model, f"lora({rank})", method, clip_norm, draws)
    assert all(float(value.norm()) > 1e-6 for value in expected.values())
    assert error(made, expected) < 1e-5


@pytest.mark.parametrize("method", ["book_keeping", "hooks"])
def test_clipped_sums_with_frozen_first_factors_are_those_of_one_at_a_time(generator, method):
    made, expected = both_sums(adapted(generator, 3, decoder_layers=2), "ffa_lora(3)", method)
    assert not any(name.endswith("lora_a.weight") for name in made)
    assert error(made, expected) < 1e-5


@pytest.mark.parametrize("method", ["book_keeping", "hooks"])
@pytest.mark.parametrize("which", ["last_1", ("decoder.0.feed.*", "norm_out.*"), ("encoder.*",)])
def test_clipped_sums_of_few_layers_are_those_of_one_example_at_a_time(generator, which, method):
    model = sharpen(generator(encoder_layers=2, decoder_layers=2))
    assert error(*both_sums(model, which, method)) < 1e-5


def test_gradients_of_the_factors_follow_from_that_of_the_merged_weight(generator):
    """W' = W + s B A, so dB = s dW' A^T and dA = s B^T dW': of the plain model, one by one."""
    model, plain = adapted(generator, decoder_layers=2), generator(decoder_layers=2)
    select(model, "lora(3)")
    plain.load_state_dict(plain_weights(model))
    for pair in make_pairs(LENGTHS[:4]):
        made, merged = slow_gradients(model, pair), slow_gradients(plain, pair)
        for path, layer in low_rank_layers(model).items():
            full = layer.scale * merged[f"{path}.weight"]
            for factor, expected in (
                ("lora_b", full @ layer.lora_a.weight.T),
                ("lora_a", layer.lora_b.weight.T @ full),
            ):
                off = made[f"{path}.{factor}.weight"] - expected
                assert off.norm() <= 1e-4 * expected.norm()


def test_before_the_first_step_only_b_has_a_gradient(generator):
    model = adapted(generator, is_moved=False)
    select(model, "lora(3)")
    batch = collate(make_pairs(LENGTHS), TOKENIZER)
    made = sums(model, lambda: record_losses(model, batch), "book_keeping", 1.0)
    for name, value in made.items():
        assert bool(value.any()) != name.endswith("lora_a.weight"), name


class Products(TorchDispatchMode):
    """Shapes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::bmm"):
            self.shapes.add(tuple(made.shape[-2:]))
        return made


@pytest.mark.parametrize("method", ["book_keeping", "hooks", None])
def test_no_gradient_of_a_frozen_matrix_is_computed(generator, method):
    """Seen from below: no product has a frozen matrix's shape, though one has with `all`."""

    def products(model, which):
        select(model, which)
        batch = collate(make_pairs([(20, 11)] * 5), TOKENIZER)
        with Products() as seen:
            if method is None:
                trained = [p for p in model.parameters() if p.requires_grad]
                torch.autograd.grad(record_losses(model, batch).sum(), trained)
            else:
                with clipped_gradients(model, method, 1.0) as (gradients, total):
                    gradients.losses_backward(record_losses(model, batch))
                    total.accumulate()
        frozen = [p for p in model.parameters() if not p.requires_grad]
        assert all(p.grad is None and getattr(p, "summed_grad", None) is None for p in frozen)
        return seen.shapes

    up, down = (64, 16), (16, 64)
    assert {up, down} & products(sharpen(generator()), "all")
    low = products(adapted(generator), "lora(3)")
    assert not {up, down, (16, 16), (262, 16)} & low
    assert {(3, 16), (64, 3)} & low | {(16, 3), (3, 64)} & low
    assert not {up, down, (262, 16)} & products(sharpen(generator()), ("encoder.*.attention.*",))


@pytest.mark.parametrize("rank", [1, 3])
def test_a_saved_model_is_plain_and_computes_the_same(generator, tmp_path, rank):
    model = adapted(generator, rank).eval()
    save_model(tmp_path / "m.safetensors", model)
    loaded = load_model(tmp_path / "m.safetensors")
    assert list(dict(loaded.named_parameters())) == list(parameter_shapes(model.shape))
    exact, merged = logits(model.double()), logits(loaded.double())
    assert float((merged - exact).norm() / exact.norm()) < 1e-6
    model.float(), loaded.float()
    for path, layer in low_rank_layers(model).items():
        expected = layer.weight.double() + ALPHA / rank * (
            layer.lora_b.weight.double() @ layer.lora_a.weight.double()
        )
        assert torch.equal(loaded.get_parameter(f"{path}.weight"), expected.float())
        assert torch.linalg.matrix_rank(expected - layer.weight) == rank


def test_a_model_without_factors_is_saved_as_it_is(generator):
    model = generator()
    assert plain_weights(model).keys() == model.state_dict().keys()
    assert all(torch.equal(plain_weights(model)[n], v) for n, v in model.state_dict().items())
