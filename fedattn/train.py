"""Local training on one device: what it computes from its conversations in one round.

conversation/local (DESIGN section 4): DP-SGD. Each step Poisson-samples conversations at a public
rate, draws one example from each (`train.draws` of them), clips the (mean) gradient per
conversation, adds the full noise, divides by a public number and moves. The number of steps is
public. So what leaves depends on the data through clipped, noised sums alone, and an empty batch or
a device without a record is a step like any other.

conversation/distributed and /server: one such batch, of which the clipped sum leaves as it is: the
codec rounds it, noise comes after, and the server divides and steps.

unit client: plain local steps (client_change.py); the codec clips their change as a whole. unit
none: plain steps.

After private data is read nothing here raises because of it (but with unit none, which protects
nobody): a conversation, or with unit client a device, whose pass fails counts as zero. A failing
conversation is found by computing its batch again one record at a time, so that it never takes
others with it: if it did, one record would decide over a whole batch's contribution. A batch that
runs out of memory is halved (memory.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedattn.augment import augmented
from fedattn.batches import IGNORED, Batch, Pair, Record, collate
from fedattn.checkpoint import read_vector, write_vector
from fedattn.client_change import client_change as _client_change
from fedattn.clipping import PrivateOptimizer, clipped_gradients
from fedattn.config import Config
from fedattn.footprint import bytes_per_example
from fedattn.memory import Rows, ceiling, is_out_of_memory
from fedattn.model import AttentionGenerator, trainable_names
from fedattn.placement import usable_device
from fedattn.randomness import Randomness
from fedattn.tokens import Tokenizer

Example: TypeAlias = tuple[Pair, ...]  # what was drawn from one record
_STEP = 16  # where records are clipped, lengths are filled up to multiples of this


@dataclass(frozen=True)
class LocalResult:
    """What one device computed, before noise and masks of the sum.

    `delta` (d,) float32, in the order of `read_vector`: the change of the weights or, where a
    round is one step (`Config.is_one_step`), the sum of clipped gradients.
    """

    delta: Tensor


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
    """One round's contribution of a device that holds `records`, from the model's weights.

    - `unit: conversation, noise: local`: the change after `local_steps` DP-SGD steps, its noise
      in it.
    - `Config.is_one_step`: the sum over one Poisson batch of per-conversation gradients, each
      clipped to C (1 - CLIP_MARGIN); not divided, no noise. An empty batch: exactly zero.
    - `unit: client`: the change after `local_steps` plain steps on `expected_batch_size` examples
      each, neither clipped nor noised, and always finite. Without a usable record, after as many
      steps on a made-up one, or if anything fails: exactly zero.
    - `unit: none`: the change after `local_steps` plain steps.

    The model is left as it was, also by an exception. `records` may be empty. Sampling, draws and
    noise come from `randomness`. Where and in what memory it runs is `config.train`'s, which a
    device sets for itself (`Config.placed`); RefusalError("device") if it cannot be there.
    """
    device = usable_device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    # CLIP_MARGIN counts on float32 products; a container's environment may have allowed TF32.
    torch.set_float32_matmul_precision("highest")
    names = trainable_names(model, config.model.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.to(device).train()
    before = read_vector(model, names)
    given = (model, tokenizer, config, randomness)
    rate = config.privacy.sampling_rate
    try:
        if config.is_one_step:
            with _ClippedBatches(*given) as batch:
                batch.add(poisson_sample(records, rate, randomness))
                delta = batch.sum.vector().float()
        elif config.privacy.unit == "client":
            delta = _client_change(_PlainSteps(*given), records, names)
        else:
            with (_PlainSteps if config.privacy.unit == "none" else _PrivateSteps)(*given) as steps:
                for _ in range(config.train.local_steps):
                    steps.take(poisson_sample(records, rate, randomness))
            delta = read_vector(model, names) - before
    finally:
        write_vector(model, names, before)
        model.eval()
    return LocalResult(delta)


def noise_only(
    model: AttentionGenerator, tokenizer: Tokenizer, config: Config, randomness: Randomness
) -> LocalResult:
    """The result of a device that holds no record: what leaves when reading its data fails.

    Noise where devices add it while they train, zero where it is added to the sum (unit client:
    after as many steps as others take). On the CPU: what failed may be the CUDA device.
    """
    return train_locally(model, tokenizer, (), config.placed({"device": "cpu"}), randomness)


class _Steps(ABC):
    """What private and plain steps share: drawing examples and cutting them to memory."""

    clipping: str | None = None  # how records are clipped, if they are

    def __init__(
        self,
        model: AttentionGenerator,
        tokenizer: Tokenizer,
        config: Config,
        randomness: Randomness,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.randomness = randomness
        self.device = next(model.parameters()).device
        key = (self.device, model.shape, config.model.trainable, config.train.draws, self.clipping)
        each = bytes_per_example(model.shape, config.model.trainable, self.clipping)
        self.rows = Rows(key, ceiling(config.train, each))

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of local steps, over what training changes."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        rate = self.config.train.learning_rate
        if self.config.train.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
        return torch.optim.SGD(parameters, lr=rate)

    def draw(self, record: Record) -> Example:
        """`draws` of the record's examples, each uniformly and changed by itself (augment.py)."""
        train, randomness = self.config.train, self.randomness
        chosen = [randomness.below(len(record.replies)) for _ in range(train.draws)]
        context_tokens = self.model.shape.context_tokens
        return tuple(
            augmented(
                record,
                record.replies[index],
                self.tokenizer,
                context_tokens,
                train.augment,
                randomness,
            )
            for index in chosen
        )

    def compute(self, examples: Sequence[Example]) -> None:
        """`run` physical batches of alike lengths; all is drawn before: no draw hangs on memory."""
        ordered = sorted(examples, key=_lengths)
        shape, token = self.model.shape, self.tokenizer.you
        longest = Pair([token] * shape.context_tokens, [token] * shape.reply_tokens)
        made_up = (longest,) * self.config.train.draws
        for alike in self._buckets(ordered):
            self.rows.compute(alike, self.run, lambda count: self.rehearse([made_up] * count))

    def _buckets(self, ordered: list[Example]) -> list[list[Example]]:
        """What may share a pass: where records are clipped, those of equal padded lengths alone.

        A server that crafts weights can make padding matter: a record's pass, its rounding, even
        whether it is finite, would hang on the longest record beside it (clipped_sum.py).
        """
        if self.clipping is None:
            return [ordered]
        return [list(alike) for _, alike in groupby(sorted(ordered, key=_rounded), key=_rounded)]

    @abstractmethod
    def run(self, examples: Sequence[Example]) -> None:
        """Add the examples' gradients to the step; adds nothing if it raises."""

    @abstractmethod
    def rehearse(self, examples: Sequence[Example]) -> None:
        """The same pass, of which nothing stays."""

    def losses(self, examples: Sequence[Example]) -> Tensor:
        """Loss of each draw of each example, (len(examples) * draws,)."""
        pairs = [draw for example in examples for draw in example]
        batch = collate(pairs, self.tokenizer, self.model.shape.reply_tokens)
        if self.clipping is not None:
            shape = self.model.shape
            batch = padded(batch, self.tokenizer.pad, shape.context_tokens, shape.reply_tokens)
        is_low = self.config.train.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_low):
            return record_losses(self.model, batch.to(self.device))


def _rounded(example: Example) -> tuple[int, int]:
    context, reply = _lengths(example)
    return -(-context // _STEP), -(-reply // _STEP)


def padded(batch: Batch, pad: int, context_tokens: int, reply_tokens: int) -> Batch:
    """The batch with both lengths filled up to multiples of 16, or to the most there are."""
    width, length = batch.context.shape[1], batch.tokens.shape[1]
    left = min(width + -width % _STEP, max(width, context_tokens)) - width
    right = min(length + -length % _STEP, max(length, reply_tokens)) - length
    return Batch(
        F.pad(batch.context, (left, 0), value=pad),
        F.pad(batch.tokens, (0, right), value=pad),
        F.pad(batch.targets, (0, right), value=IGNORED),
    )


def _lengths(example: Example) -> tuple[int, int]:
    return max(len(each.context) for each in example), max(len(each.reply) for each in example)


class _ClippedBatches(_Steps):
    """Sums of per-conversation gradients, clipped each (module docstring)."""

    @property
    def clipping(self) -> str:  # type: ignore[override]
        """As configured."""
        return self.config.train.clipping

    def __enter__(self) -> Self:
        train, clip_norm = self.config.train, self.config.privacy.clip_norm
        self._context = clipped_gradients(
            self.model, train.clipping, clip_norm, train.draws, train.precision
        )
        self.gradients, self.sum = self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def add(self, records: Sequence[Record]) -> None:
        """Add one example of each record, clipped; a record that fails adds zero."""
        self.compute(self._draw_all(records))

    def _draw_all(self, records: Sequence[Record]) -> list[Example]:
        examples = []
        for record in records:
            try:
                examples.append(self.draw(record))
            except Exception:  # noqa: S112 (a broken record counts as zero, and says nothing)
                continue
        return examples

    def run(self, examples: Sequence[Example]) -> None:
        """Add clipped gradients; a record whose pass fails alone adds zero.

        Raises only if memory ran out for several records, and then adds nothing.
        """
        try:
            self.gradients.losses_backward(self.losses(examples))
            self.sum.accumulate()
            return
        except Exception as error:
            self.gradients.reset()
            if len(examples) == 1:
                return
            if is_out_of_memory(error):
                raise
        for single in examples:
            self.run([single])

    def rehearse(self, examples: Sequence[Example]) -> None:
        """A pass whose gradients are neither clipped nor added."""
        try:
            self.gradients.losses_backward(self.losses(examples))
        finally:
            self.gradients.reset()


class _PrivateSteps(_ClippedBatches):
    """DP-SGD steps by Opacus's DPOptimizer over those sums."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.private = PrivateOptimizer(
            self.optimizer(),
            self.sum,
            noise_multiplier=self.config.privacy.noise_multiplier,
            expected_batch_size=self.config.train.expected_batch_size,
            randomness=self.randomness.child("noise"),
        )
        return self

    def take(self, records: Sequence[Record]) -> None:
        """One step over the sampled records; noise is added whatever they do."""
        self.add(records)
        self.private.finish_step()


class _PlainSteps(_Steps):
    """Steps without clipping or noise: the non-private reference."""

    def __enter__(self) -> Self:
        self.plain = self.optimizer()
        return self

    def __exit__(self, *error: object) -> None:
        self.plain.zero_grad(set_to_none=True)

    def take(self, records: Sequence[Record]) -> None:
        """One step along the summed gradient over the public expected batch size."""
        self.plain.zero_grad(set_to_none=True)
        self.compute([self.draw(record) for record in records])
        self.plain.step()

    def run(self, examples: Sequence[Example]) -> None:
        """Add the examples' gradients to those of the step, all of them or none."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        divisor = self.config.train.expected_batch_size * self.config.train.draws
        loss = self.losses(examples).sum() / divisor
        for parameter, made in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = made if parameter.grad is None else parameter.grad.add_(made)

    def rehearse(self, examples: Sequence[Example]) -> None:
        """A pass whose gradients are dropped."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        torch.autograd.grad(self.losses(examples).sum(), parameters)
