"""Local training on one device: DP-SGD on conversations, or plain steps where nothing is private.

conversation/local (DESIGN section 4): each step Poisson-samples conversations at a public rate,
draws one example from each, clips per conversation, adds the full noise, divides by a public
number and moves. The number of steps is public. So what leaves depends on the data through
clipped, noised sums alone, and an empty batch or a device without a record is a step like any
other.

After private data is read nothing here raises because of it: a record whose pass fails counts as
zero. A failing record is found by computing its batch again one record at a time, so that it
never takes others with it: if it did, one record would decide over a whole batch's contribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedattn.batches import IGNORED, Batch, Pair, Record, collate, pair
from fedattn.checkpoint import read_vector, write_vector
from fedattn.clipping import PerRecordGradients, PrivateOptimizer, per_record_gradients
from fedattn.config import Config
from fedattn.model import AttentionGenerator, trainable_names
from fedattn.privacy.events import Event, round_event
from fedattn.randomness import Randomness
from fedattn.tokens import Tokenizer


@dataclass(frozen=True)
class LocalResult:
    """What one device's training made: the change `delta` (d,) float32, and what it cost."""

    delta: Tensor
    event: Event


def choose_device(wanted: str) -> torch.device:
    """`auto`: the first CUDA device if there is one, else the CPU."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def record_losses(model: AttentionGenerator, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats of each record's reply tokens: (B,)."""
    logits = model(batch.context, batch.tokens)
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(),
        batch.targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(batch.targets)
    return nats.sum(1) / (batch.targets != IGNORED).sum(1)


def poisson_sample(
    records: Sequence[Record], sampling_rate: float, randomness: Randomness
) -> list[Record]:
    """Each record independently with probability `sampling_rate` (rounded down to 2^-64)."""
    if sampling_rate >= 1:
        return list(records)
    chosen = randomness.words(len(records)) < np.uint64(int(sampling_rate * 2.0**64))
    return [records[index] for index in np.flatnonzero(chosen).tolist()]


def train_locally(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    config: Config,
    randomness: Randomness,
) -> LocalResult:
    """Run `local_steps` steps from the model's weights and return what they changed.

    The model is left as it was. `records` may be empty: the result is then noise alone. Sampling,
    draws and noise come from `randomness`.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = choose_device(config.train.device)
    names = trainable_names(model, config.model.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.to(device).train()
    before = read_vector(model, names)
    step = _PrivateSteps if config.privacy.unit != "none" else _PlainSteps
    with step(model, tokenizer, config, randomness) as steps:
        for _ in range(config.train.local_steps):
            steps.take(poisson_sample(records, config.privacy.sampling_rate, randomness))
    delta = read_vector(model, names) - before
    write_vector(model, names, before)
    model.eval()
    return LocalResult(delta, round_event(config))


def noise_only(
    model: AttentionGenerator, tokenizer: Tokenizer, config: Config, randomness: Randomness
) -> LocalResult:
    """The result of a device that holds no record: what leaves when reading its data fails."""
    return train_locally(model, tokenizer, (), config, randomness)


class _Steps:
    """What private and plain steps share: drawing examples and cutting them to memory."""

    def __init__(
        self,
        model: AttentionGenerator,
        tokenizer: Tokenizer,
        config: Config,
        randomness: Randomness,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.randomness = randomness
        parameters = [p for p in model.parameters() if p.requires_grad]
        rate = config.train.learning_rate
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
            if config.train.optimizer == "adam"
            else torch.optim.SGD(parameters, lr=rate)
        )

    def draw(self, record: Record) -> Pair:
        """One of the record's examples, uniformly."""
        reply = record.replies[self.randomness.below(len(record.replies))]
        return pair(record, reply, self.tokenizer, self.model.shape.context_tokens)

    def batches(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        """Physical batches of alike lengths: memory and padding change, no record's gradient."""
        size = self.config.train.max_physical_batch
        ordered = sorted(pairs, key=lambda item: (len(item.context), len(item.reply)))
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def losses(self, pairs: Sequence[Pair]) -> Tensor:
        """Loss of each pair, (B,)."""
        batch = collate(pairs, self.tokenizer, self.model.shape.reply_tokens)
        return record_losses(self.model, batch.to(next(self.model.parameters()).device))


class _PrivateSteps(_Steps):
    """DP-SGD steps by Opacus (module docstring)."""

    def __enter__(self) -> _PrivateSteps:
        self._context = per_record_gradients(self.model)
        self.gradients: PerRecordGradients = self._context.__enter__()
        privacy = self.config.privacy
        self.private = PrivateOptimizer(
            self.optimizer,
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
            expected_batch_size=self.config.train.expected_batch_size,
            randomness=self.randomness.child("noise"),
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def take(self, records: Sequence[Record]) -> None:
        """One step over the sampled records; noise is added whatever they do."""
        for pairs in self.batches(self._draw_all(records)):
            if not self._accumulate(pairs) and len(pairs) > 1:
                for single in pairs:
                    self._accumulate([single])
        self.private.finish_step()

    def _draw_all(self, records: Sequence[Record]) -> list[Pair]:
        pairs = []
        for record in records:
            try:
                pairs.append(self.draw(record))
            except Exception:  # noqa: S112 (a broken record counts as zero, and says nothing)
                continue
        return pairs

    def _accumulate(self, pairs: Sequence[Pair]) -> bool:
        """Add the pairs' clipped gradients; False, and nothing added, if their pass failed."""
        before = [
            None if p.summed_grad is None else p.summed_grad.clone() for p in self.private.params
        ]
        try:
            self.gradients.losses_backward(self.losses(pairs))
            self.private.accumulate()
        except Exception:
            self.gradients.reset()
            for parameter, summed in zip(self.private.params, before, strict=True):
                parameter.summed_grad = summed  # a sum that failed half way would count some twice
            return False
        return True


class _PlainSteps(_Steps):
    """Steps without clipping or noise: the non-private reference."""

    def __enter__(self) -> _PlainSteps:
        return self

    def __exit__(self, *error: object) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def take(self, records: Sequence[Record]) -> None:
        """One step along the summed gradient over the public expected batch size."""
        self.optimizer.zero_grad(set_to_none=True)
        for pairs in self.batches([self.draw(record) for record in records]):
            torch.autograd.backward(
                self.losses(pairs).sum() / self.config.train.expected_batch_size
            )
        self.optimizer.step()
