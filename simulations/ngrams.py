"""What counting alone reaches on the frozen test protocol: uniform, unigram, bigram.

    python simulations/ngrams.py

NOT PRIVATE: the counts are those of all training replies. Tokens, replies and bytes are the
protocol's; a reply is scored with its end, as the generator's is. The one free number of each
model (added count; discount) is chosen on validation, then test is scored once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array, csr_array

from fedattn.batches import Pair, tokenize
from fedattn.data import load_partition
from fedattn.generate import choose_pairs
from fedattn.protocol import DATA, EXAMPLES, HELD_OUT_BYTES, PROTOCOL, SHAPE, protocol_of
from fedattn.tokens import Tokenizer

ADDED = (0.01, 0.1, 0.5, 1.0)
DISCOUNTS = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)


def steps(replies: Sequence[Sequence[int]], bos: int) -> tuple[np.ndarray, np.ndarray]:
    """Every token of `replies` (N,), and the one before it, <bos> before the first."""
    after = np.concatenate([np.asarray(reply) for reply in replies])
    before = np.concatenate([np.asarray([bos, *reply[:-1]]) for reply in replies])
    return before, after


class Unigram:
    """p(w) = (count(w) + added) / (N + added V); V without the ids that no reply can hold."""

    def __init__(self, after: np.ndarray, size: int, possible: int, added: float) -> None:
        counts = np.bincount(after, minlength=size) + added
        self.p = counts / (len(after) + added * possible)

    def bits(self, before: np.ndarray, after: np.ndarray) -> float:
        """Bits of all of `after`."""
        return float(-np.log2(self.p[after]).sum())


class Bigram:
    """Absolute discounting, interpolated with the unigram (Ney, Essen and Kneser 1994).

    p(w | v) = max(c(v, w) - D, 0) / c(v) + D n(v) / c(v) p(w); n(v): distinct successors of v.
    """

    def __init__(self, before: np.ndarray, after: np.ndarray, unigram: Unigram, discount: float):
        size = len(unigram.p)
        ones = np.ones(len(after))
        self.pairs = csr_array(coo_array((ones, (before, after)), shape=(size, size)))
        self.total = np.asarray(self.pairs.sum(axis=1)).ravel()
        self.kinds = np.diff(self.pairs.indptr)
        self.unigram, self.discount = unigram, discount

    def bits(self, before: np.ndarray, after: np.ndarray) -> float:
        """Bits of all of `after` given `before`."""
        seen = np.asarray(self.pairs[before, after]).ravel()
        total, kinds = self.total[before], self.kinds[before]
        known = np.maximum(total, 1)
        left = np.where(total > 0, self.discount * kinds / known, 1.0)
        p = np.maximum(seen - self.discount, 0) / known + left * self.unigram.p[after]
        return float(-np.log2(p).sum())


def size_of(pairs: Sequence[Pair], tokenizer: Tokenizer) -> int:
    """Bytes of the replies' text."""
    return sum(len(tokenizer.decode(each.reply).encode()) for each in pairs)


def main() -> None:
    """Print the figures as one JSON object a line."""
    tokenizer, data = Tokenizer(SHAPE.vocab_size), load_partition(DATA)
    train = [
        [*record.turns[index], tokenizer.eos]
        for own in data.train
        for record in tokenize(own, tokenizer, DATA.max_reply_bytes)
        for index in record.replies
    ]
    before, after = steps(train, tokenizer.bos)
    held, sizes = {}, {}
    for part in ("validation", "test"):
        records = tokenize(getattr(data, part), tokenizer, HELD_OUT_BYTES)
        pairs = choose_pairs(records, tokenizer, SHAPE.context_tokens, EXAMPLES, part)
        assert protocol_of(pairs, part), f"the {part} pairs are not those of {PROTOCOL}"
        held[part] = steps([pair.reply for pair in pairs], tokenizer.bos)
        sizes[part] = size_of(pairs, tokenizer)

    def bpb(model: Unigram | Bigram, part: str) -> float:
        return model.bits(*held[part]) / sizes[part]

    possible = SHAPE.vocab_size + 1  # byte pairs and <eos>
    found = {"uniform": math.log2(possible) * len(held["test"][1]) / sizes["test"]}
    print(json.dumps({"model": "uniform", "test": round(found["uniform"], 4)}))
    unigrams = [Unigram(after, tokenizer.size, possible, added) for added in ADDED]
    best = min(range(len(ADDED)), key=lambda i: bpb(unigrams[i], "validation"))
    bigrams = [Bigram(before, after, unigrams[best], d) for d in DISCOUNTS]
    second = min(range(len(DISCOUNTS)), key=lambda i: bpb(bigrams[i], "validation"))
    for name, model, free in (
        ("unigram", unigrams[best], {"added": ADDED[best]}),
        ("bigram", bigrams[second], {"discount": DISCOUNTS[second]}),
    ):
        scores = {part: round(bpb(model, part), 4) for part in ("validation", "test")}
        print(json.dumps({"model": name, **free, **scores, "replies": len(train)}))


if __name__ == "__main__":
    main()
