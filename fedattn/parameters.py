"""Which parameters an attention generator has and training changes, in the model's own order.

Without torch, which costs a cold process seconds: a device needs names, shapes and counts before
it trains. `model.AttentionGenerator` and `lora.add_low_rank` are the definition; tests hold these
lists to them. What `model.trainable` may say (d counts a tied weight once, always):

    all          every parameter, the embedding (tied to the output layer) among them
    bias_norm    every bias, that of attention's distances included, and every LayerNorm
    last_N       the last N decoder layers, norm_out and head.bias
    lora(R)      the factors A and B of every linear layer of attention and feed-forward, and
                 bias_norm (Hu et al. 2021, arXiv 2106.09685); not the embedding, nor the head
    ffa_lora(R)  as lora(R), the factors A frozen (FFA-LoRA; Sun et al. 2024, arXiv 2403.12313):
                 fewer numbers to noise, and a mean of B's is the mean of the changes
    [patterns]   what a pattern matches, as of fnmatch, case-sensitive: `decoder.*.feed.*`

The rest is frozen: no gradient, no noise, no bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from fedattn.config import Architecture, Trainable
from fedattn.errors import ConfigError

Shapes: TypeAlias = dict[str, tuple[int, ...]]
NUM_BUCKETS: Final = 32  # of relative distances
SPECIALS: Final = 5  # <pad> <bos> <eos> <me> <you>, after the byte-pair ids
LORA_A, LORA_B = ".lora_a.weight", ".lora_b.weight"  # (R, d_in) and (d_out, R) of a linear layer


def parameter_shapes(shape: Architecture, which: Trainable = "all") -> Shapes:
    """Shape by name, in the order of the model's `named_parameters()`.

    The output layer's weight is the embedding and counts once, as that. With `lora(R)` the factors
    are among them; ConfigError for a rank above d_model.
    """
    d, heads, size = shape.d_model, shape.heads, shape.vocab_size + SPECIALS
    rank = lora_rank(which) or 0
    if rank > d:
        raise ConfigError(
            f"model.trainable: lora({rank}): rank {rank} is above d_model, {d}; a full matrix is "
            "smaller than its factors would be: choose a smaller rank"
        )
    norm: Shapes = {"weight": (d,), "bias": (d,)}
    attention = {
        **_linear("query", d, d, rank),
        **_linear("key", d, d, rank, has_bias=False),
        **_linear("value", d, d, rank),
        **_linear("out", d, d, rank),
        "bias.weight": (NUM_BUCKETS, heads),
    }
    feed = _linear("up", 4 * d, d, rank) | _linear("down", d, 4 * d, rank)
    ends = _under("norm_feed", norm) | _under("feed", feed)
    own = _under("norm_attention", norm) | _under("attention", attention)
    across = _under("norm_cross", norm) | _under("cross", attention)
    found: Shapes = {"embedding.weight": (size, d)}
    for layer in range(shape.encoder_layers):
        found |= _under(f"encoder.{layer}", own | ends)
    for layer in range(shape.decoder_layers):
        found |= _under(f"decoder.{layer}", own | across | ends)
    return found | _under("norm_memory", norm) | _under("norm_out", norm) | {"head.bias": (size,)}


def trainable_shapes(shape: Architecture, which: Trainable) -> Shapes:
    """The part of `parameter_shapes` that training changes: the vector that leaves, in its order.

    ConfigError for more layers than there are, a rank above d_model, a pattern without a match.
    """
    shapes = parameter_shapes(shape, which)
    if which == "all":
        return shapes
    if not isinstance(which, str):
        return _matching(shapes, which)
    if which.startswith("last_"):
        return _matching(shapes, _last(shape, int(which.removeprefix("last_"))))
    small = ("bias.weight", LORA_B) if which.startswith("ffa") else ("bias.weight", LORA_A, LORA_B)
    return {name: size for name, size in shapes.items() if len(size) == 1 or name.endswith(small)}


def trainable_count(shape: Architecture, which: Trainable) -> int:
    """d: numbers that training changes."""
    return sum(math.prod(size) for size in trainable_shapes(shape, which).values())


def lora_rank(which: Trainable) -> int | None:
    """R of `lora(R)` and `ffa_lora(R)`; None for anything else.

    >>> lora_rank("lora(8)"), lora_rank("ffa_lora(4)"), lora_rank("all")
    (8, 4, None)
    """
    found = re.fullmatch(r"(?:ffa_)?lora\(([0-9]+)\)", which) if isinstance(which, str) else None
    return int(found[1]) if found else None


def _last(shape: Architecture, count: int) -> list[str]:
    layers = shape.decoder_layers
    if count > layers:
        raise ConfigError(
            f"model.trainable: last_{count}: {count} decoder layers, the model has {layers}; use "
            f"at most last_{layers}"
        )
    chosen = [f"decoder.{layer}.*" for layer in range(layers - count, layers)]
    return [*chosen, "norm_out.*", "head.bias"]


def _matching(shapes: Shapes, patterns: Sequence[str]) -> Shapes:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise ConfigError(
                f"model.trainable: pattern `{pattern}` matches no parameter; names are like "
                "`decoder.0.feed.up.weight`, `norm_out.bias` and `embedding.weight`, which is the "
                "output layer's weight too"
            )
    return {
        name: size
        for name, size in shapes.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _linear(name: str, wide: int, given: int, rank: int, *, has_bias: bool = True) -> Shapes:
    found: Shapes = {f"{name}.weight": (wide, given)}
    if has_bias:
        found[f"{name}.bias"] = (wide,)
    if rank:
        found |= {name + LORA_A: (rank, given), name + LORA_B: (wide, rank)}
    return found


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": size for name, size in shapes.items()}
