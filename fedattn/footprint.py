"""How much memory training takes beyond weights, estimated from public numbers, without torch.

A device knows before it reads a conversation whether one fits: else a server could choose numbers
by which memory runs out on those devices alone that drew a record. memory.py cuts batches by it.
"""

from __future__ import annotations

import math
from typing import Final

from fedattn.config import Architecture, Config, Trainable
from fedattn.parameters import SPECIALS, lora_rank, trainable_shapes
from fedattn.start import start_facts

_FLOAT: Final = 4  # bytes


def bytes_per_example(shape: Architecture, which: Trainable, clipping: str | None) -> int:
    """Memory that one more example of the longest lengths takes in a pass, estimated from above.

    which: `model.trainable`. clipping: how records are clipped, None if they are not. The factors
    count the float32 tensors that a layer keeps for its backward pass; tests/test_memory.py holds
    them against the allocator [1.05 to 2.3 times what it gives out, on the CPU; up to 3.0 where few
    layers are trained]. Weights, sums, noise and optimizer states are not in it: they do not grow
    with the batch. ConfigError if the model has not what is to be trained.
    """
    d, s, t = shape.d_model, shape.context_tokens, shape.reply_tokens
    vocabulary, rank = shape.vocab_size + SPECIALS, lora_rank(which) or 0
    trained = trainable_shapes(shape, which)
    has_table = "embedding.weight" in trained
    encoder = 16 * s * d + 2 * shape.heads * s * s
    decoder = 20 * t * d + 2 * s * d + 2 * shape.heads * (t * t + t * s)
    encoder += 18 * s * rank
    decoder += (24 * t + 6 * s) * rank
    # a layer before the first trained parameter keeps nothing; hooks start at the embedding
    floats, is_kept = 0, has_table or clipping == "hooks"
    for side, count, each, ends in (
        ("encoder", shape.encoder_layers, encoder, 9 * s * d),
        ("decoder", shape.decoder_layers, decoder, 11 * t * d + 2 * s * d),
    ):
        if side == "decoder":  # its layers read what norm_memory makes
            is_kept = is_kept or any(name.startswith("norm_memory.") for name in trained)
        for layer in range(count):
            own = [size for name, size in trained.items() if name.startswith(f"{side}.{layer}.")]
            is_kept = is_kept or bool(own)
            floats += each if is_kept else 0
            if clipping == "book_keeping" and any(len(size) == 2 for size in own):
                floats += ends  # gradients of layers' outputs are kept
    floats += 3 * t * vocabulary + 2 * (s + t) * d
    if clipping == "book_keeping":
        if has_table or "head.bias" in trained:
            floats += t * vocabulary
        floats += sum(math.prod(size) for size in trained.values() if len(size) == 1)
    elif clipping is not None:
        floats += sum(math.prod(size) for size in trained.values())
        if has_table:  # a second one of the embedding, while it is made
            floats += vocabulary * d
    floats = max(floats, encoder, decoder)  # (a layer that keeps nothing takes it for a moment)
    return round(1.1 * _FLOAT * floats)  # (a tenth for masks and small tensors)


def bytes_per_conversation(config: Config) -> int:
    """What `train.draws` examples take: they are clipped as one, so no batch parts them.

    ConfigError if the installed model has not what is to be trained, ModelError if there is none.
    """
    shape = config.model.architecture or start_facts(config.model).architecture
    clipping = config.train.clipping if config.privacy.unit == "conversation" else None
    return config.train.draws * bytes_per_example(shape, config.model.trainable, clipping)
