"""Which parameters an attention generator has, in the model's own order, without torch.

`model.AttentionGenerator` is the definition; a test holds this list to it. A device needs names,
shapes and counts before it trains, and torch costs a cold process seconds.
"""

from __future__ import annotations

import math

from fedattn.config import Architecture, Trainable

NUM_BUCKETS = 32  # of relative distances
SPECIALS = 5  # <pad> <bos> <eos> <me> <you>, after the byte-pair ids


def parameter_shapes(shape: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape by name, in the order of `AttentionGenerator(shape).named_parameters()`.

    The output layer's weight is the embedding and counts once, as that.
    """
    d, heads, size = shape.d_model, shape.heads, shape.vocab_size + SPECIALS
    norm: dict[str, tuple[int, ...]] = {"weight": (d,), "bias": (d,)}
    square: dict[str, tuple[int, ...]] = {"weight": (d, d), "bias": (d,)}
    attention = {
        **_under("query", square),
        "key.weight": (d, d),
        **_under("value", square),
        **_under("out", square),
        "bias.weight": (NUM_BUCKETS, heads),
    }
    feed: dict[str, tuple[int, ...]] = {
        "up.weight": (4 * d, d),
        "up.bias": (4 * d,),
        "down.weight": (d, 4 * d),
        "down.bias": (d,),
    }
    ends = _under("norm_feed", norm) | _under("feed", feed)
    own = _under("norm_attention", norm) | _under("attention", attention)
    across = _under("norm_cross", norm) | _under("cross", attention)
    found: dict[str, tuple[int, ...]] = {"embedding.weight": (size, d)}
    for layer in range(shape.encoder_layers):
        found |= _under(f"encoder.{layer}", own | ends)
    for layer in range(shape.decoder_layers):
        found |= _under(f"decoder.{layer}", own | across | ends)
    return found | _under("norm_memory", norm) | _under("norm_out", norm) | {"head.bias": (size,)}


def is_trainable(name: str, dimensions: int, which: Trainable) -> bool:
    """Whether training changes a parameter.

    `all`, or `bias_norm`: every bias (the relative-position one included) and LayerNorm.
    """
    return which == "all" or dimensions == 1 or name.endswith("bias.weight")


def trainable_count(shape: Architecture, which: Trainable) -> int:
    """d: numbers that training changes."""
    return sum(
        math.prod(size)
        for name, size in parameter_shapes(shape).items()
        if is_trainable(name, len(size), which)
    )


def _under(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}": size for name, size in shapes.items()}
