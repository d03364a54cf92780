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

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedattn.config import Architecture
from fedattn.parameters import NUM_BUCKETS, SPECIALS, is_trainable

MAX_DISTANCE = 128


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


class RelativePositionBias(nn.Module):
    """Adds b[bucket(distance), head] to attention scores.

    `forward` takes the scores, so that the backward pass hands over one gradient per record: the
    parameter itself has no batch dimension, and a sampler that looked only at it would see the
    batch's sum.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_BUCKETS, heads))

    def forward(self, buckets: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, H, T, S) plus the bias of `buckets` (T, S), int64.

        Scores come last: Opacus reads the batch size off a module's last input.
        """
        return scores + self.weight[buckets].permute(2, 0, 1)


def distance_buckets(queries: Tensor, keys: Tensor, *, bidirectional: bool) -> Tensor:
    """Bucket (T, S) of each distance query - key; half of the buckets are logarithmic.

    Raffel et al. 2020: exact buckets up to a half, logarithmic ones to MAX_DISTANCE, one shared
    by all that lies beyond. With `bidirectional` the sign takes one bit of the bucket.
    """
    distance = queries[:, None] - keys[None, :]
    buckets, offset = NUM_BUCKETS, torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance < 0).long() * buckets
        distance = distance.abs()
    distance = distance.clamp(min=0)
    exact = buckets // 2
    scale = (buckets - exact) / math.log(MAX_DISTANCE / exact)
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) * scale).long()
    return offset + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_k) + b) V, heads side by side."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model)
        # no bias: it would add one number to all scores of a row, which softmax ignores
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.bias = RelativePositionBias(heads)

    def forward(
        self, x: Tensor, memory: Tensor, buckets: Tensor, blocked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From x (B, T, d) to memory (B, S, d); `blocked` broadcasts to (B, H, T, S).

        Returns the output (B, T, d) and the weights A (B, H, T, S).
        """
        q, k, v = (self._split(f(z)) for f, z in self._projections(x, memory))
        scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5)
        weights = self.bias(buckets, scores).masked_fill(blocked, -torch.inf).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, T, d)
        return self.out(mixed), weights

    def _projections(self, x: Tensor, memory: Tensor) -> list[tuple[nn.Module, Tensor]]:
        return [(self.query, x), (self.key, memory), (self.value, memory)]

    def _split(self, z: Tensor) -> Tensor:
        return z.view(*z.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, T, d_k)


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

    def forward(self, x: Tensor, buckets: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, d) -> (B, S, d) and the attention weights."""
        h = self.norm_attention(x)
        mixed, weights = self.attention(h, h, buckets, blocked)
        x = x + mixed
        return x + self.feed(self.norm_feed(x)), weights


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, d) -> (B, T, d), self-attention weights, cross-attention weights."""
        h = self.norm_attention(x)
        mixed, own = self.attention(h, h, buckets, future)
        x = x + mixed
        blocked = ~memory.mask[:, None, None, :]
        mixed, cross = self.cross(self.norm_cross(x), memory.values, cross_buckets, blocked)
        x = x + mixed
        return x + self.feed(self.norm_feed(x)), own, cross


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

    def encode(self, context: Tensor) -> Memory:
        """Memory of a left-padded context (B, S), int64."""
        return self._encode(context)[0]

    def decode(self, memory: Memory, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) after each of `tokens` (B, T), which start with <bos>."""
        return self._decode(memory, tokens)[0]

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, T, V): row t scores the reply token that follows tokens[:, t]."""
        return self.decode(self.encode(context), tokens)

    def attend(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, Attention]:
        """As `forward`, with the attention weights of every layer."""
        memory, encoder = self._encode(context)
        logits, own, cross = self._decode(memory, tokens)
        return logits, Attention(tuple(encoder), tuple(own), tuple(cross))

    def _encode(self, context: Tensor) -> tuple[Memory, list[Tensor]]:
        mask = context != self.pad
        places = torch.arange(context.shape[1], device=context.device)
        buckets = distance_buckets(places, places, bidirectional=True)
        # an all-padding row may look at its padding: softmax over nothing would be NaN
        blocked = ~(mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        x, weights = self.embedding(context), []
        for layer in self.encoder:
            x, seen = layer(x, buckets, blocked)
            weights.append(seen)
        return Memory(self.norm_memory(x), mask | ~mask.any(1, keepdim=True)), weights

    def _decode(self, memory: Memory, tokens: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        length, slots = tokens.shape[1], memory.mask.shape[1]
        places = torch.arange(length, device=tokens.device)
        buckets = distance_buckets(places, places, bidirectional=False)
        cross_buckets = distance_buckets(
            places + slots, torch.arange(slots, device=tokens.device), bidirectional=False
        )
        future = places[None, :] > places[:, None]
        x, own_weights, cross_weights = self.embedding(tokens), [], []
        for layer in self.decoder:
            x, own, cross = layer(x, memory, buckets, cross_buckets, future)
            own_weights.append(own)
            cross_weights.append(cross)
        logits: Tensor = self.head(self.norm_out(x))
        return logits, own_weights, cross_weights


def trainable_names(model: AttentionGenerator, which: str) -> list[str]:
    """Names of the parameters that training changes, in the model's own order.

    `all`, or `bias_norm`: every bias (the relative-position one included) and LayerNorm.
    """
    return [
        name
        for name, parameter in model.named_parameters()
        if is_trainable(name, parameter.dim(), which)
    ]


def count_parameters(model: nn.Module) -> int:
    """Number of distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
