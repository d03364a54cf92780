"""What one client's plain local steps change (unit client), and steps of a client that holds none.

Every client takes the same public number of steps on the same number of examples. One without a
usable record takes them on a made-up one of the longest context and reply, of which nothing
leaves: an answer at once, while others work, would tell the server that there was nothing to learn
from, and a server may ask for more steps to see it better.

What remains: a step takes time by the lengths of the examples drawn, which others than the made-up
one have shorter, and an exception part way ends the steps early. Timing is a stated residual leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from fedattn.batches import Record
from fedattn.checkpoint import read_vector
from fedattn.config import Config
from fedattn.model import AttentionGenerator
from fedattn.randomness import Randomness
from fedattn.tokens import Tokenizer


class Steps(Protocol):
    """Optimizer steps on `model`, neither clipped nor noised, as a context."""

    model: AttentionGenerator
    tokenizer: Tokenizer
    config: Config
    randomness: Randomness

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def take(self, records: Sequence[Record]) -> None:
        """One step on an example of each record."""


def client_change(steps: Steps, records: Sequence[Record], names: list[str]) -> Tensor:
    """What `local_steps` steps on examples drawn with replacement change: (d,) float32, finite.

    Exactly zero without a usable record, after as many steps on `longest_record`; exactly zero,
    too, if a step raises, which returns early, or if the change is not finite.
    """
    before = read_vector(steps.model, names)
    nothing = torch.zeros_like(before)
    usable = [record for record in records if record.replies]
    is_empty = not usable
    if is_empty:
        usable = [longest_record(steps.model, steps.tokenizer)]
    train = steps.config.train
    try:
        with steps:
            for _ in range(train.local_steps):
                chosen = [
                    steps.randomness.below(len(usable)) for _ in range(train.expected_batch_size)
                ]
                steps.take([usable[index] for index in chosen])
        change = read_vector(steps.model, names) - before
    except Exception:  # (the client counts as zero, and says nothing)
        return nothing
    return change if change.isfinite().all() and not is_empty else nothing


def longest_record(model: AttentionGenerator, tokenizer: Tokenizer) -> Record:
    """A made-up conversation whose one example is as long as `model` takes."""
    token, shape = tokenizer.you, model.shape
    return Record((0, 1), ((token,) * shape.context_tokens, (token,) * shape.reply_tokens), (1,))
