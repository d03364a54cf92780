"""What a device computes for one round from its own conversations; all that needs torch.

Whatever reading the data raises, the result is noise as for a device without a record: an absence
or an error would tell the server about the data. That includes what is no Exception: a panic in
compiled code (tokenizers, safetensors) is a BaseException, and would end the process. Only what
asks the process to end does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from fedattn.checkpoint import Start, make_start, write_vector
from fedattn.config import Config, DataConfig, ModelConfig
from fedattn.data import data_stamp, load_partition
from fedattn.kept_tokens import open_tokens
from fedattn.model import trainable_names
from fedattn.randomness import Randomness
from fedattn.records import ENDS, Record, training_records
from fedattn.start import Floats
from fedattn.tokens import Tokenizer
from fedattn.train import LocalResult, noise_only, train_locally


def contribute(
    config: Config, data: DataConfig, index: int, vector: Floats, randomness: Randomness
) -> LocalResult:
    """One round of client `index` of `data` from the weights `vector` (d,); never fails for data.

    With anything but `unit: none` nothing that data could raise leaves.
    """
    model, _ = installed_start(config.model, config.seed)
    names, weights = trainable_names(model, config.model.trainable), torch.from_numpy(vector)
    write_vector(model, names, weights)
    tokenizer = Tokenizer(model.shape.vocab_size)
    try:
        own = records(data, index, tokenizer)
        return train_locally(model, tokenizer, own, config, randomness)
    except ENDS:
        raise
    except BaseException:
        # Steps already taken left nothing behind; fresh randomness, or noise would repeat.
        write_vector(model, names, weights)
        return noise_only(model, tokenizer, config, randomness.child("noise only"))


@lru_cache(maxsize=4)
def installed_start(config: ModelConfig, seed: int | None) -> Start:
    """The installed start model and its hash; one instance serves all devices of a process."""
    return make_start(config, seed=seed)


def records(data: DataConfig, index: int, tokenizer: Tokenizer) -> Sequence[Record]:
    """The conversations of client `index`, cleaned as `data.clean` says and tokenised; or none.

    Out of this simulation's token store, if it has one of `data`; else tokenised in this process.
    """
    stored = open_tokens(data, tokenizer.vocab_size)
    if stored is not None:
        return stored.train(index)
    return _tokenized(data.model_dump_json(), data_stamp(data), index, tokenizer.vocab_size)


@lru_cache(maxsize=1024)
def _tokenized(
    config_json: str, _stamp: tuple[int, ...], index: int, vocab_size: int
) -> tuple[Record, ...]:
    config = DataConfig.model_validate_json(config_json)
    dialogues = load_partition(config).train[index]
    return tuple(training_records(dialogues, Tokenizer(vocab_size), config))
