"""A short measurement on made-up text: what a round will take on this machine. A prediction.

Arbitrary token sequences of the model's full lengths: no conversation is read. Their number
is the config's public one, never a data size. What is timed is what a device runs: local training
with and without examples, and encoding; and the server's decoding. Not in it: keys, shares, masks,
signatures, ledgers, pricing, evaluation, the loading of data, and start-up; nor the workers of a
simulation, which share a round's clients among them.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedattn.config import Config

if TYPE_CHECKING:
    from fedattn.batches import Record
    from fedattn.model import AttentionGenerator

_EXAMPLES = 32  # at most, of one measurement
_VECTORS = 4 + 8 + 8 + 8  # bytes a coordinate at the server: sum, integers, noise, mean


@dataclass(frozen=True)
class Prediction:
    """Clients one after another in this process, with the threads that torch has here.

    Real conversations are shorter than the probe's.
    """

    seconds_per_example: float
    seconds_per_step: float  # without an example
    seconds_encoding: float  # of one vector, noise included
    seconds_decoding: float  # of one sum
    examples_per_client: float  # expected in a round, from public numbers
    seconds_per_client: float
    seconds_per_round: float
    seconds_per_run: float
    peak_bytes: int  # of this process after the probe, and the server's vectors; no worker's


def probe(config: Config, model: AttentionGenerator, dimension: int) -> Prediction:
    """Measure for about a second or two and predict; `model` is left as it was.

    dimension: d, trainable parameters.
    """
    import numpy as np

    from fedattn.encoding import codec_of
    from fedattn.randomness import Randomness
    from fedattn.tokens import Tokenizer
    from fedattn.train import train_locally

    stream = Randomness.from_os()
    count = min(_EXAMPLES, config.train.max_physical_batch)
    small = _one_step(config, count)
    tokenizer, records = Tokenizer(model.shape.vocab_size), made_up(model, count)

    def train(held: list[Record]) -> Callable[[], object]:
        return lambda: train_locally(model, tokenizer, held, small, stream)

    _seconds(train(records[:1]))  # hooks, threads, allocator
    empty, full = _fastest(train([])), _fastest(train(records))
    per_example = max(full - empty, 0.0) / count

    n = config.data.clients
    codec = codec_of(config, dimension, n, bytes(32))
    vector = np.full(dimension, 1e-4, np.float32)
    words = codec.encode(vector, 0, stream)  # makes the noise's table, once
    encoding = _fastest(lambda: codec.encode(vector, 0, stream))
    decoding = _fastest(lambda: codec.decode_mean(words, n, stream))

    steps, cohort = config.train.local_steps, n * config.privacy.client_rate
    examples = float(steps * config.train.expected_batch_size)
    if config.is_one_step:
        examples /= n
    per_client = examples * per_example + steps * empty + encoding
    per_round = cohort * per_client + decoding
    return Prediction(
        seconds_per_example=per_example,
        seconds_per_step=empty,
        seconds_encoding=encoding,
        seconds_decoding=decoding,
        examples_per_client=examples,
        seconds_per_client=per_client,
        seconds_per_round=per_round,
        seconds_per_run=per_round * config.train.rounds,
        peak_bytes=_peak_bytes() + codec.length * _VECTORS,
    )


def made_up(model: AttentionGenerator, count: int) -> list[Record]:
    """`count` records of one reply each, of arbitrary tokens, as long as the model reads."""
    from fedattn.batches import Record

    shape = model.shape

    def turn(first: int, length: int) -> tuple[int, ...]:
        return tuple((first + 31 * place) % shape.vocab_size for place in range(length))

    return [
        Record((0, 1), (turn(i, shape.context_tokens), turn(7 * i, shape.reply_tokens - 1)), (1,))
        for i in range(count)
    ]


def _one_step(config: Config, examples: int) -> Config:
    """`config` with one local step that takes every record, or `examples` of them."""
    changes: dict[str, dict[str, Any]] = {"train": {"local_steps": 1}, "privacy": {}}
    if config.privacy.unit == "client":
        changes["train"]["expected_batch_size"] = examples
    else:
        changes["privacy"]["sampling_rate"] = 1.0
    return config.model_copy(
        update={
            name: getattr(config, name).model_copy(update=each) for name, each in changes.items()
        }
    )


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _fastest(run: Callable[[], object]) -> float:
    """Of two: the other may have paid for something that is made once."""
    return min(_seconds(run), _seconds(run))


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
