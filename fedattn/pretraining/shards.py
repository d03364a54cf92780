"""Shards of sampled text: one file a seed, sampled again only if its facts no longer hold."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from fedattn.durable import write_durably
from fedattn.errors import DataError
from fedattn.pretraining.character_lstm import NAMES, CharacterLSTM
from fedattn.pretraining.openers import load_openers
from fedattn.pretraining.recipe import SampledConfig
from fedattn.pretraining.sampler import Sampling, sample
from fedattn.pretraining.sources import SAMPLING_CODE, code_sha256

WEIGHTS, VOCABULARY = "textgenrnn_weights.hdf5", "textgenrnn_vocab.json"


def make_shards(
    package: Mapping[str, bytes],
    config: SampledConfig,
    folder: Path,
    tell: Callable[[str], None] = print,
) -> dict[int, Path]:
    """The file of each seed, sampled if it is not there; a line is a dialogue's turns as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {seed: folder / f"sampled-{seed}.jsonl" for seed in config.seeds}
    for seed, path in paths.items():
        sampling = sampling_of(config, seed)
        facts = shard_facts(package, sampling)
        if _is_there(path, facts):
            continue
        tell(f"sampling shard {seed}: {sampling.characters:,} characters")
        content = sample_shard(package, sampling)
        write_durably(path, content)
        facts["sha256"] = hashlib.sha256(content).hexdigest()
        write_durably(path.with_suffix(".json"), json.dumps(facts, indent=1).encode() + b"\n")
    return paths


def sampling_of(config: SampledConfig, seed: int) -> Sampling:
    """The settings of one shard."""
    return Sampling(
        seed=seed,
        characters=config.characters,
        streams=config.streams,
        window=config.window,
        stride=config.stride,
        turns=config.turns,
        longest_turn=config.longest_turn,
        temperatures=(config.coldest, config.hottest),
    )


def shard_facts(package: Mapping[str, bytes], sampling: Sampling) -> dict[str, Any]:
    """What decides a shard."""
    openers = (files("fedattn.pretraining") / "openers.yaml").read_bytes()
    return {
        "sampling": json.loads(json.dumps(asdict(sampling))),
        "weights": hashlib.sha256(package[WEIGHTS]).hexdigest(),
        "vocabulary": hashlib.sha256(package[VOCABULARY]).hexdigest(),
        "openers": hashlib.sha256(openers).hexdigest(),
        "code": code_sha256(*SAMPLING_CODE),
    }


def sample_shard(package: Mapping[str, bytes], sampling: Sampling) -> bytes:
    """The shard's lines; on one thread, so that sums are taken in one order."""
    network, vocabulary = load_network(package)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dialogues = sample(network, vocabulary, load_openers(), sampling)
        return "".join(json.dumps(turns) + "\n" for turns in dialogues).encode()
    finally:
        torch.set_num_threads(threads)


def load_network(package: Mapping[str, bytes]) -> tuple[CharacterLSTM, dict[str, int]]:
    """The network and its characters, from the files of the textgenrnn package."""
    try:
        with h5py.File(io.BytesIO(package[WEIGHTS]), "r") as file:
            arrays = {name: np.asarray(file[name]) for name in NAMES}
        vocabulary = json.loads(package[VOCABULARY])
    except (KeyError, OSError, ValueError) as error:
        raise DataError(
            f"textgenrnn's files cannot be read ({type(error).__name__}); "
            "pip install --no-deps textgenrnn==2.0.0"
        ) from None
    return CharacterLSTM(arrays), vocabulary


def _is_there(path: Path, facts: dict[str, Any]) -> bool:
    try:
        said = json.loads(path.with_suffix(".json").read_bytes())
        wanted = said.pop("sha256")
        return bool(said == facts and hashlib.sha256(path.read_bytes()).hexdigest() == wanted)
    except (OSError, ValueError, KeyError):
        return False
