"""Attention with a trained relative-position bias, in the two forms that torch computes it in.

    A = softmax(Q K^T / sqrt(d_k) + b)      written out, or by torch's fused kernel

Where gradients are needed attention is written out: a record's gradient of b, which has no batch
dimension, exists in the backward pass through `RelativePositionBias` alone, and clipping reads it
there. Nor does the fused kernel tell its weights A. What is left, evaluation, uses the form that
was measured to be faster (`benchmarks.attention`); both agree to 1e-5 in float32.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedattn.parameters import NUM_BUCKETS

MAX_DISTANCE = 128

Form: TypeAlias = Literal["written_out", "fused"]
# Without gradients, by type of device and dtype of queries, as measured (benchmarks/README.md);
# written out where there is no entry. CUDA has none: it was not measured.
FASTER: Final[dict[tuple[str, torch.dtype], Form]] = {
    ("cpu", torch.float32): "fused",
    ("cpu", torch.bfloat16): "written_out",
}


def form_for(queries: Tensor) -> Form:
    """The form in which attention of `queries` is computed if nobody wants to see its weights."""
    if torch.is_grad_enabled():
        return "written_out"
    return FASTER.get((queries.device.type, queries.dtype), "written_out")


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
        return scores + self.added(buckets)

    def added(self, buckets: Tensor) -> Tensor:
        """What is added to scores of `buckets` (T, S): (H, T, S)."""
        return self.weight[buckets].permute(2, 0, 1)


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


class KeysValues(NamedTuple):
    """What attention looks at: keys and values, (B, H, S, d_k) each."""

    keys: Tensor
    values: Tensor


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
        self,
        x: Tensor,
        memory: Tensor,
        buckets: Tensor,
        blocked: Tensor,
        seen: list[Tensor] | None = None,
    ) -> Tensor:
        """From x (B, T, d) to memory (B, S, d): (B, T, d); `blocked` broadcasts to (B, H, T, S).

        The weights A (B, H, T, S) are appended to `seen` if it is given.
        """
        queries = self._split(self.query(x))
        return self._look(queries, self.project(memory), buckets, blocked, seen)

    def project(self, memory: Tensor) -> KeysValues:
        """Keys and values of `memory` (B, S, d)."""
        return KeysValues(self._split(self.key(memory)), self._split(self.value(memory)))

    def look(
        self, x: Tensor, memory: KeysValues, buckets: Tensor, blocked: Tensor | None
    ) -> Tensor:
        """`forward` to keys and values that are there; nothing is blocked if None."""
        return self._look(self._split(self.query(x)), memory, buckets, blocked, None)

    def _look(
        self,
        queries: Tensor,
        memory: KeysValues,
        buckets: Tensor,
        blocked: Tensor | None,
        seen: list[Tensor] | None,
    ) -> Tensor:
        if seen is None and form_for(queries) == "fused":
            mask = self.bias.added(buckets).unsqueeze(0).to(queries.dtype)
            if blocked is not None:
                mask = mask.masked_fill(blocked, -torch.inf)
            mixed = F.scaled_dot_product_attention(queries, *memory, attn_mask=mask)
        else:
            scores = (queries @ memory.keys.transpose(-2, -1)) * (queries.shape[-1] ** -0.5)
            scores = self.bias(buckets, scores)
            if blocked is not None:
                scores = scores.masked_fill(blocked, -torch.inf)
            weights = scores.softmax(dim=-1)
            mixed = weights @ memory.values
            if seen is not None:
                seen.append(weights)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, z: Tensor) -> Tensor:
        return z.view(*z.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, T, d_k)
