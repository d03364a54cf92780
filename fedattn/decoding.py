"""A reply token by token, with the keys and values of what was read kept."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fedattn.attention import KeysValues, distance_buckets
from fedattn.model import AttentionGenerator, DecoderLayer, Memory


class Decoding:
    """Replies (B, 0..longest) to one memory as they grow: each step reads one token of each.

    Logits agree with `AttentionGenerator.decode` over all tokens so far to 1e-5 in float32. No
    gradients. The model's weights must stay as they are meanwhile.
    """

    def __init__(self, model: AttentionGenerator, memory: Memory, longest: int) -> None:
        self._model, self._length = model, 0
        self._layers = [cast(DecoderLayer, layer) for layer in model.decoder]
        self._slots = memory.mask.shape[1]
        self._blocked = ~memory.mask[:, None, None, :]
        device = memory.values.device
        # what lies behind a token is all that it sees, so that a bucket per distance is enough
        distances = torch.arange(longest + self._slots + 1, device=device)
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        self._buckets = distance_buckets(distances, zero, bidirectional=False).flatten()
        with torch.no_grad():
            self._memory = [layer.cross.project(memory.values) for layer in self._layers]
        self._own: list[KeysValues | None] = [None] * len(self._layers)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after `tokens` (B,), the next of each reply; the first is <bos>."""
        # distances to self..first token, and to the last..first slot of the memory
        own = self._buckets[: self._length + 1].flip(0)[None]  # (1, T)
        across = self._buckets[self._length + 1 : self._length + 1 + self._slots].flip(0)[None]
        self._length += 1
        x: Tensor = self._model.embedding(tokens[:, None])  # (B, 1, d)
        for number, layer in enumerate(self._layers):
            h = layer.norm_attention(x)
            kept = self._own[number] = _appended(self._own[number], layer.attention.project(h))
            x = x + layer.attention.look(h, kept, own, None)
            h = layer.norm_cross(x)
            x = x + layer.cross.look(h, self._memory[number], across, self._blocked)
            x = x + layer.feed(layer.norm_feed(x))
        logits: Tensor = self._model.head(self._model.norm_out(x))[:, 0]
        return logits


def _appended(kept: KeysValues | None, new: KeysValues) -> KeysValues:
    if kept is None:
        return new
    return KeysValues(torch.cat((kept.keys, new.keys), 2), torch.cat((kept.values, new.values), 2))
