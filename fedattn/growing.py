"""Replies as they grow, token by token, and the text of them piece by piece."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from fedattn.decoding import Decoding
from fedattn.errors import ConfigError
from fedattn.model import AttentionGenerator
from fedattn.sampling import Sampling, next_tokens, stream_of
from fedattn.tokens import Tokenizer

LONGEST: Final = 4096  # tokens of a reply; memory and time of a reply are bounded by it


def require_length(max_tokens: int, least: int = 0) -> None:
    """ConfigError unless a reply may be `max_tokens` long: in least..LONGEST."""
    if not least <= max_tokens <= LONGEST:
        raise ConfigError(
            f"max_tokens: {max_tokens} must be at least {least} and at most {LONGEST}"
        )


def grow(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    contexts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling,
    numbers: Sequence[random.Random],
) -> Iterator[list[int | None]]:
    """The next token of each context's reply, step by step; None for a reply that has ended.

    Ends when every reply has, or after `max_tokens` steps; ConfigError, at the first step, for
    more than LONGEST. Special tokens other than <eos> never
    come, nor an <eos> before any text. Row i draws from `numbers[i]` alone. Computed together,
    replies have the logits that each has alone to 1e-5: contexts are padded on the left, where
    distances do not see it.
    """
    require_length(max_tokens)
    device = next(model.parameters()).device
    width = max(map(len, contexts))
    padded = [[tokenizer.pad] * (width - len(each)) + list(each) for each in contexts]
    with torch.no_grad():
        memory = model.encode(torch.tensor(padded, device=device))
    decoding = Decoding(model, memory, max_tokens)
    barred = torch.zeros(tokenizer.size, dtype=torch.bool, device=device)
    barred[[tokenizer.pad, tokenizer.bos, tokenizer.me, tokenizer.you]] = True
    at_first = barred.clone()
    at_first[tokenizer.eos] = True
    said = torch.zeros(len(contexts), tokenizer.size, dtype=torch.bool, device=device)
    tokens = torch.full((len(contexts),), tokenizer.bos, device=device)
    is_over = [False] * len(contexts)
    for step in range(max_tokens):
        tokens = next_tokens(
            decoding.step(tokens),
            sampling,
            said=said,
            barred=barred if step else at_first,
            uniforms=[each.random() for each in numbers],
        )
        said.scatter_(1, tokens[:, None], True)
        made = tokens.tolist()
        is_over = [old or new == tokenizer.eos for old, new in zip(is_over, made, strict=True)]
        if all(is_over):
            return
        yield [None if over else token for over, token in zip(is_over, made, strict=True)]


class GrowingReply(Iterator[str]):
    """One reply as it grows: iterate over the pieces of its text.

    Each piece is text of whole characters (a token may hold a part of one, which is kept back).
    Joined, the pieces are `text` when the reply has ended, without white space around it.
    """

    def __init__(self, ids: Iterator[int], tokenizer: Tokenizer) -> None:
        self._coming, self._tokenizer = ids, tokenizer
        self._read: list[int] = []
        self._shown = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens so far, without <eos>."""
        return tuple(self._read)

    @property
    def text(self) -> str:
        """The text so far, with all that was kept back."""
        return self._tokenizer.decode(self._read).strip()

    def __next__(self) -> str:
        for token in self._coming:
            self._read.append(token)
            # The end may be the beginning of a character, shown as U+FFFD until it is whole, or
            # of the white space around the reply.
            if piece := self._new(self.text.rstrip("\ufffd").rstrip()):
                return piece
        if piece := self._new(self.text):
            return piece
        raise StopIteration

    def _new(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown += len(piece)
        return piece


def growing_reply(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    context: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int | None = None,
    number: int = 0,
) -> GrowingReply:
    """The reply to `context` token ids; tokens are made as it is iterated.

    Its random numbers depend on `seed` and `number` alone. ConfigError if `max_tokens` is negative
    or above LONGEST.
    """
    require_length(max_tokens)
    steps = grow(
        model,
        tokenizer,
        [context],
        max_tokens=max_tokens,
        sampling=sampling,
        numbers=[stream_of(seed, number)],
    )
    return GrowingReply((token for (token,) in steps if token is not None), tokenizer)
