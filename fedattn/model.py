"""The attention generator: an encoder-decoder Transformer with a trained relative-position bias.

    memory  E(x)                          encoder over the context x
    A = softmax(Q K^T / sqrt(d_k) + b)    b: one learned number per head and bucketed distance
    p(y_t | y_<t, x) = D(A V, y_{t-1})    decoder over the reply

Pre-norm Transformer (Vaswani et al. 2017, arXiv 1706.03762; Xiong et al. 2020, arXiv 2002.04745)
with the logarithmic distance buckets of Raffel et al. 2020 (arXiv 1910.10683, section 2.1), in
self-attention and in cross-attention alike. Contexts are padded on the left, so that the distance
from reply token t to memory slot s is (S - s) + t for every record. Positions enter through b
alone; sequences of any length can be scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedattn.attention import (
    MAX_DISTANCE,
    MultiHeadAttention,
    RelativePositionBias,
    distance_buckets,
)
from fedattn.config import Architecture, Trainable
from fedattn.errors import ModelError
from fedattn.parameters import NUM_BUCKETS, SPECIALS, trainable_shapes

__all__ = [
    "MAX_DISTANCE",
    "NUM_BUCKETS",
    "Attention",
    "AttentionGenerator",
    "Memory",
    "RelativePositionBias",
    "count_parameters",
    "distance_buckets",
    "trainable_names",
]


@dataclass(frozen=True)
class Memory:
    """What a decoder attends to: `values` (B, S, d) and `mask` (B, S), True where real.

    Text today; any other encoder (graph triples, image patches) may make one.
    """

    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Attention:
    """Attention weights, one tensor a layer: where each position looked."""

    encoder: tuple[Tensor, ...]  # (B, H, S, S)
    decoder: tuple[Tensor, ...]  # (B, H, T, T)
    cross: tuple[Tensor, ...]  # (B, H, T, S)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class EncoderLayer(nn.Module):
    """Self-attention over the context, then a feed-forward layer."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, heads)
        self.norm_feed = nn.LayerNorm(d_model)
        self.feed = FeedForward(d_model)

    def forward(
        self, x: Tensor, buckets: Tensor, blocked: Tensor, seen: list[Tensor] | None = None
    ) -> Tensor:
        """(B, S, d) -> (B, S, d); appends the attention weights to `seen`."""
        h = self.norm_attention(x)
        x = x + self.attention(h, h, buckets, blocked, seen)
        out: Tensor = x + self.feed(self.norm_feed(x))
        return out


class DecoderLayer(nn.Module):
    """Causal self-attention over the reply, attention to the memory, then a feed-forward."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, heads)
        self.norm_cross = nn.LayerNorm(d_model)
        self.cross = MultiHeadAttention(d_model, heads)
        self.norm_feed = nn.LayerNorm(d_model)
        self.feed = FeedForward(d_model)

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        buckets: Tensor,
        cross_buckets: Tensor,
        future: Tensor,
        seen: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> Tensor:
        """(B, T, d) -> (B, T, d); appends self- and cross-attention weights to `seen`."""
        own, across = (None, None) if seen is None else seen
        h = self.norm_attention(x)
        x = x + self.attention(h, h, buckets, future, own)
        blocked = ~memory.mask[:, None, None, :]
        x = x + self.cross(self.norm_cross(x), memory.values, cross_buckets, blocked, across)
        out: Tensor = x + self.feed(self.norm_feed(x))
        return out


class AttentionGenerator(nn.Module):
    """Scores and generates replies given a context.

    Token ids are those of `fedattn.tokens.Tokenizer(shape.vocab_size)`, whose special tokens come
    last. The input embedding, shared by encoder and decoder, is tied to the output layer.
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.shape = shape
        d, heads = shape.d_model, shape.heads
        size = shape.vocab_size + SPECIALS
        self.pad = shape.vocab_size
        self.embedding = nn.Embedding(size, d)
        self.encoder = nn.ModuleList(EncoderLayer(d, heads) for _ in range(shape.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(d, heads) for _ in range(shape.decoder_layers))
        self.norm_memory = nn.LayerNorm(d)
        self.norm_out = nn.LayerNorm(d)
        self.head = nn.Linear(d, size)
        self.head.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        depth = 2 * self.shape.encoder_layers + 3 * self.shape.decoder_layers
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                continue  # biases and norms keep torch's zeros and ones, set below for Linear
            if name.endswith("bias.weight"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out.weight", "down.weight")):
                # residual branches start small, so that depth does not inflate the stream
                nn.init.normal_(parameter, std=0.5 * (parameter.shape[1] * depth) ** -0.5)
            else:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def encode(self, context: Tensor, seen: list[Tensor] | None = None) -> Memory:
        """Memory of a left-padded context (B, S), int64; appends attention weights to `seen`."""
        mask = context != self.pad
        places = torch.arange(context.shape[1], device=context.device)
        buckets = distance_buckets(places, places, bidirectional=True)
        # an all-padding row may look at its padding: softmax over nothing would be NaN
        mask = mask | ~mask.any(1, keepdim=True)
        x: Tensor = self.embedding(context)
        for layer in self.encoder:
            x = layer(x, buckets, ~mask[:, None, None, :], seen)
        return Memory(self.norm_memory(x), mask)

    def decode(
        self, memory: Memory, tokens: Tensor, seen: tuple[list[Tensor], list[Tensor]] | None = None
    ) -> Tensor:
        """Logits (B, T, V) after each of `tokens` (B, T), which start with <bos>.

        Appends self- and cross-attention weights to `seen`.
        """
        length, slots = tokens.shape[1], memory.mask.shape[1]
        places = torch.arange(length, device=tokens.device)
        buckets = distance_buckets(places, places, bidirectional=False)
        cross_buckets = distance_buckets(
            places + slots, torch.arange(slots, device=tokens.device), bidirectional=False
        )
        future = places[None, :] > places[:, None]
        x: Tensor = self.embedding(tokens)
        for layer in self.decoder:
            x = layer(x, memory, buckets, cross_buckets, future, seen)
        logits: Tensor = self.head(self.norm_out(x))
        return logits

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, T, V): row t scores the reply token that follows tokens[:, t]."""
        return self.decode(self.encode(context), tokens)

    def attend(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, Attention]:
        """As `forward`, with the attention weights of every layer."""
        encoder: list[Tensor] = []
        own: list[Tensor] = []
        cross: list[Tensor] = []
        logits = self.decode(self.encode(context, encoder), tokens, (own, cross))
        return logits, Attention(tuple(encoder), tuple(own), tuple(cross))


def trainable_names(model: AttentionGenerator, which: Trainable) -> list[str]:
    """Names of the parameters that training changes (`parameters`), in the model's own order.

    ConfigError if `which` does not fit the model's shape; ModelError if it lacks what `lora(R)`
    trains, which `checkpoint.start_model` adds.
    """
    names, own = trainable_shapes(model.shape, which), dict(model.named_parameters())
    if any(name not in own or own[name].shape != size for name, size in names.items()):
        raise ModelError(f"model.trainable: {which}: the model was not made for it by start_model")
    return list(names)


def count_parameters(model: nn.Module) -> int:
    """Number of distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
