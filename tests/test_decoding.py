"""With keys and values kept, every step gives the logits of reading the whole reply again."""

from __future__ import annotations

import pytest
import torch

from fedattn.attention import FASTER
from fedattn.decoding import Decoding


def drawn(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 257, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", ["fused", "written_out"])
@pytest.mark.parametrize(("slots", "length"), [(1, 4), (12, 30), (150, 140)])
@torch.no_grad()
def test_every_step_agrees_with_the_uncached_twin(generator, monkeypatch, form, slots, length):
    monkeypatch.setitem(FASTER, ("cpu", torch.float32), form)
    for seed in range(3):
        model = generator(seed, spread=0.6, decoder_layers=2)
        context, reply = drawn(3, slots, seed), drawn(3, length, seed + 9)
        context[1, : slots // 2] = model.pad
        context[2] = model.pad
        memory = model.encode(context)
        whole = model.decode(memory, reply)
        decoding = Decoding(model, memory, length)
        for place in range(length):
            made = decoding.step(reply[:, place])
            assert torch.allclose(made, whole[:, place], rtol=1e-5, atol=1e-5)


def test_no_gradient_is_kept(generator):
    model = generator()
    decoding = Decoding(model, model.encode(drawn(1, 3, 0)), 2)
    assert not decoding.step(torch.tensor([1])).requires_grad
