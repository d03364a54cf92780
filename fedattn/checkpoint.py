"""Models on disk: safetensors with the architecture in the file's metadata.

A checkpoint in half precision is loaded as float32; `model_sha256` is taken over the float32
values, so that server, devices and auditor name the same model alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedattn.config import ModelConfig
from fedattn.errors import ModelError
from fedattn.lora import add_low_rank, plain_weights
from fedattn.model import AttentionGenerator
from fedattn.parameters import lora_rank
from fedattn.start import FORMAT, PUBLIC, read_checkpoint, vector_sha256, weights_sha256

_TIED = "head.weight"


class Start(NamedTuple):
    """The model that training starts from, ready for it, and its name (hex).

    The name is that of the weights that were installed: what `lora(R)` adds follows from them.
    """

    model: AttentionGenerator
    sha256: str


def start_model(config: ModelConfig, *, seed: int | None = None) -> AttentionGenerator:
    """The model that training starts from: shipped, random, or a file's.

    With `trainable: lora(R)` its factors are in it, and compute nothing yet.
    """
    return make_start(config, seed=seed).model


def make_start(config: ModelConfig, *, seed: int | None = None) -> Start:
    """As `start_model`, with the name; ConfigError for a rank above d_model."""
    model = _installed(config, seed)
    sha256, rank = model_sha256(model), lora_rank(config.trainable)
    if rank is not None:
        add_low_rank(model, rank, sha256)
    return Start(model, sha256)


def _installed(config: ModelConfig, seed: int | None) -> AttentionGenerator:
    if config.start == "random":
        assert config.architecture is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            return AttentionGenerator(config.architecture)
    if config.start == "public":
        with as_file(files("fedattn") / "assets" / PUBLIC) as path:
            return load_model(path)
    return load_model(Path(config.start))


def save_model(
    path: Path,
    model: AttentionGenerator,
    *,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the weights once (a tied weight once) and the architecture.

    Low-rank changes are merged: the file is that of a plain model of the same architecture.
    """
    weights = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in plain_weights(model).items()
        if name != _TIED
    }
    architecture = json.dumps(model.shape.model_dump(), sort_keys=True)
    save_file(weights, path, {"format": FORMAT, "architecture": architecture, **(notes or {})})


def load_model(path: Path) -> AttentionGenerator:
    """Read a checkpoint as float32 on the CPU; ModelError says what does not fit."""
    found = read_checkpoint(path)
    model = AttentionGenerator(found.architecture)
    weights = {name: torch.from_numpy(value) for name, value in found.weights.items()}
    model.load_state_dict({**weights, _TIED: weights["embedding.weight"]})
    return model


def model_sha256(model: AttentionGenerator) -> str:
    """Hex digest over names, shapes and float32 values, in the model's own order.

    Of every parameter: with low-rank changes in it, a model is another than its start.
    """
    return weights_sha256(
        (name, value.detach().to("cpu", torch.float32).numpy())
        for name, value in model.named_parameters()
    )


def released_sha256(start_sha256: str, vector: Tensor) -> str:
    """The name of a released model: hex digest over what it started from and what training made.

    `vector` (d,) float32 holds the trainable parameters; the frozen ones are those of the start.
    Which ones they are the config says, that a run's ledger opens with and every instruction holds:
    the name is one model's within a run.
    """
    return vector_sha256(start_sha256, vector.detach().to("cpu", torch.float32).numpy())


def read_vector(model: AttentionGenerator, names: list[str]) -> Tensor:
    """The parameters `names`, flattened and concatenated: (d,) float32 on the CPU."""
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach().reshape(-1).cpu() for name in names]).float()


def write_vector(model: AttentionGenerator, names: list[str], vector: Tensor) -> None:
    """Set the parameters `names` from a (d,) vector; ModelError if the lengths differ."""
    parameters = dict(model.named_parameters())
    needed = sum(parameters[name].numel() for name in names)
    if vector.shape != (needed,):
        raise ModelError(f"vector has shape {tuple(vector.shape)}, the model needs ({needed},)")
    start = 0
    with torch.no_grad():
        for name in names:
            parameter = parameters[name]
            piece = vector[start : start + parameter.numel()]
            parameter.copy_(piece.view_as(parameter))
            start += parameter.numel()
