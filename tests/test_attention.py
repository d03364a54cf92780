"""Both forms of attention are one function; training uses the one that clipping can read."""

from __future__ import annotations

import pytest
import torch

from fedattn import attention
from fedattn.attention import FASTER, MultiHeadAttention, distance_buckets, form_for

CPU = ("cpu", torch.float32)


def padded(rows: list[int], width: int, seed: int = 0) -> torch.Tensor:
    """Contexts of these lengths, padded (257) on the left."""
    drawn = torch.Generator().manual_seed(seed)
    out = torch.full((len(rows), width), 257)
    for row, length in enumerate(rows):
        out[row, width - length :] = torch.randint(0, 257, (length,), generator=drawn)
    return out


@pytest.mark.parametrize("form", ["fused", "written_out"])
@pytest.mark.parametrize("seed", range(4))
def test_the_forms_agree_with_padding_and_without_any_context(generator, monkeypatch, seed, form):
    model = generator(seed, spread=1.0, encoder_layers=2, decoder_layers=2)
    context, tokens = padded([1, 11, 0, 6], 11, seed), padded([7] * 4, 7, seed + 1)
    trained = model(context, tokens)  # with gradients
    monkeypatch.setitem(FASTER, CPU, form)
    with torch.no_grad():
        made = model(context, tokens)
    assert made.isfinite().all()
    assert torch.allclose(made, trained, rtol=1e-5, atol=1e-5)
    assert (form == "fused") != torch.equal(made, trained)


@torch.no_grad()
def test_the_forms_agree_in_bfloat16_to_its_precision(generator, monkeypatch):
    model, context, tokens = generator(), padded([3, 9], 9), padded([5, 5], 5)
    exact = model(context, tokens)
    for form in ("fused", "written_out"):
        monkeypatch.setitem(FASTER, ("cpu", torch.bfloat16), form)
        with torch.autocast("cpu", torch.bfloat16):
            made = model(context, tokens)
        assert torch.allclose(made.float(), exact, rtol=0.05, atol=0.1)


def test_with_gradients_attention_is_written_out_whatever_is_faster(monkeypatch):
    queries = torch.zeros(1)
    for form in ("fused", "written_out"):
        monkeypatch.setitem(FASTER, CPU, form)
        assert form_for(queries) == "written_out"
        with torch.no_grad():
            assert form_for(queries) == form
    with torch.no_grad():
        assert form_for(queries.to(torch.float64)) == "written_out"  # has no entry


def test_where_nothing_was_measured_attention_is_written_out():
    assert {device for device, _ in FASTER} == {"cpu"}


def test_weights_are_seen_where_the_fused_form_is_faster(generator, monkeypatch):
    monkeypatch.setitem(FASTER, CPU, "fused")
    model, context, tokens = generator(), padded([3, 9], 9), padded([5, 5], 5)
    with torch.no_grad():
        logits, made = model.attend(context, tokens)
    assert torch.equal(logits, model(context, tokens))  # with gradients: written out
    assert made.encoder[0].shape == (2, 2, 9, 9)
    assert made.decoder[0].shape == (2, 2, 5, 5)
    assert made.cross[0].shape == (2, 2, 5, 9)


def test_training_computes_what_it_always_did_to_the_last_bit():
    """Output and gradients, beside the formula written down in one piece."""
    torch.manual_seed(0)
    layer, x = MultiHeadAttention(16, 2), torch.randn(3, 7, 16, requires_grad=True)
    memory = torch.randn(3, 5, 16, requires_grad=True)
    torch.nn.init.normal_(layer.bias.weight)
    buckets = distance_buckets(torch.arange(7) + 5, torch.arange(5), bidirectional=False)
    blocked = (torch.arange(5) < torch.tensor([[0], [2], [4]]))[:, None, None, :]

    def twin():
        def split(z):
            return z.view(*z.shape[:2], 2, -1).transpose(1, 2)

        q, k, v = split(layer.query(x)), split(layer.key(memory)), split(layer.value(memory))
        scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5)
        weights = layer.bias(buckets, scores).masked_fill(blocked, -torch.inf).softmax(dim=-1)
        return layer.out((weights @ v).transpose(1, 2).flatten(2))

    def results(out):
        return [out, *torch.autograd.grad(out.square().sum(), [x, memory, *layer.parameters()])]

    for made, expected in zip(
        results(layer(x, memory, buckets, blocked)), results(twin()), strict=True
    ):
        assert torch.equal(made, expected)


def test_a_table_entry_names_a_form():
    assert set(FASTER.values()) <= {"fused", "written_out"}
    assert attention.form_for(torch.zeros(1)) == "written_out"
