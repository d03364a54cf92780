"""The frozen test protocol: on which replies of whom quality is measured (docs/utility.md).

Frozen before anything was tuned. A choice (rate, clip, subset, rounds) is made on `validation`;
`test` is looked at once it is made. `PAIRS` pins the very token ids, so that no change of filters,
hashing or tokenizer moves them unseen: a report names the protocol only if its pairs hash to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np

from fedattn.config import Architecture, DataConfig
from fedattn.records import Pair

PROTOCOL: Final = "fedattn-test/1"
# Held-out replies count at all lengths; this bound is there for memory (the corpus has 1,842).
HELD_OUT_BYTES: Final = 8192
EXAMPLES: Final = 1500
# GPT-2's first 4,096 byte pairs, contexts of 64 ids: other shapes have bpb of another protocol.
SHAPE: Final = Architecture()
# What decides who is held out, and which conversations there are; clients do not matter.
DATA: Final = DataConfig(source="chitchat", salt="fedattn-quickstart")
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
