"""The frozen test protocol: on which replies of whom quality is measured (docs/utility.md).

Frozen before anything was tuned. A choice (rate, clip, subset, rounds) is made on `validation`;
`test` is looked at once it is made. `PAIRS` pins the very token ids, so that no change of filters,
hashing or tokenizer moves them unseen: a report names the protocol only if its pairs hash to them
and no key of its config could have held out others, which is what an audit can see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np

from fedattn.config import Architecture, Config, DataConfig
from fedattn.records import Pair

PROTOCOL: Final = "fedattn-test/1"
# Held-out replies count at all lengths; this bound is there for memory (the corpus has 1,842).
HELD_OUT_BYTES: Final = 8192
EXAMPLES: Final = 1500
# GPT-2's first 4,096 byte pairs, contexts of 64 ids: other shapes have bpb of another protocol.
SHAPE: Final = Architecture()
# What decides who is held out, and which conversations there are; clients do not matter.
DATA: Final = DataConfig(source="chitchat", salt="fedattn-quickstart")
# A conversation is kept for a reply of at most `max_reply_bytes`, then all its replies may count.
_DATA_KEYS: Final = (
    "source",
    "salt",
    "validation_share",
    "test_share",
    "min_turns",
    "max_reply_bytes",
)
_SHAPE_KEYS: Final = ("vocab_size", "context_tokens")
Part = Literal["validation", "test"]
PAIRS: Final[Mapping[Part, str]] = {
    "validation": "c51c78b914a068e61e9ff1445808c76a76a5c6b827d09ccfdaac379484e4e4ab",
    "test": "90b26bce56714c1f5bcecfdf41c79645f4ddac57a6e85730f8fefb7be3bf88fa",
}


def pairs_sha256(pairs: Sequence[Pair]) -> str:
    """Hex digest over the token ids of contexts and replies, in order."""
    digest = hashlib.sha256(PROTOCOL.encode())
    for part in pairs:
        for ids in part:
            digest.update(len(ids).to_bytes(8, "big") + np.asarray(ids, ">u4").tobytes())
    return digest.hexdigest()


def protocol_of(pairs: Sequence[Pair], part: Part = "test") -> str | None:
    """The protocol's name if these are its pairs of `part`, else None."""
    return PROTOCOL if pairs_sha256(pairs) == PAIRS[part] else None


def other_key(config: Config) -> str | None:
    """The first key that makes `config`'s held-out pairs other ones than the protocol's, or may.

    None if there is none. Of a start that is a file the shape is not in the config: `other_shape`.
    """
    for key in _DATA_KEYS:
        if getattr(config.data, key) != getattr(DATA, key):
            return f"data.{key}"
    shape = config.model.architecture
    if shape is not None and (differing := other_shape(shape)) is not None:
        return f"model.architecture.{differing}"
    return None if config.eval.examples == EXAMPLES else "eval.examples"


def other_shape(shape: Architecture) -> str | None:
    """The first of the two keys that decide what a model reads, if it is not the protocol's."""
    for key in _SHAPE_KEYS:
        if getattr(shape, key) != getattr(SHAPE, key):
            return key
    return None
