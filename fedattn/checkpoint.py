"""Models on disk: safetensors with the architecture in the file's metadata.

A checkpoint in half precision is loaded as float32; `model_sha256` is taken over the float32
values, so that server, devices and auditor name the same model alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedattn.config import Architecture, ModelConfig
from fedattn.errors import ModelError
from fedattn.model import AttentionGenerator

FORMAT = "fedattn-model/1"
PUBLIC = "public.safetensors"  # in fedattn/assets, with its model card beside it
_TIED = "head.weight"


def start_model(config: ModelConfig, *, seed: int | None = None) -> AttentionGenerator:
    """The model that training starts from: shipped, random, or a file's."""
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
    """Write the weights once (a tied weight once) and the architecture."""
    weights = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in model.state_dict().items()
        if name != _TIED
    }
    architecture = json.dumps(model.shape.model_dump(), sort_keys=True)
    save_file(weights, path, {"format": FORMAT, "architecture": architecture, **(notes or {})})


def load_model(path: Path) -> AttentionGenerator:
    """Read a checkpoint as float32 on the CPU; ModelError says what does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such checkpoint; `make pretrain` makes the public one"
        ) from None
    except (SafetensorError, OSError):
        raise ModelError(f"{path}: not a safetensors file") from None
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path}: not a {FORMAT} checkpoint; save it with fedattn")
    try:
        shape = Architecture.model_validate_json(metadata["architecture"])
    except (KeyError, ValueError):
        raise ModelError(f"{path}: no valid architecture in its metadata") from None
    model = AttentionGenerator(shape)
    expected = {name: value.shape for name, value in model.state_dict().items() if name != _TIED}
    if expected != {name: value.shape for name, value in weights.items()}:
        raise ModelError(f"{path}: weights do not fit the architecture in its metadata")
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise ModelError(f"{path}: weights are not finite")
    model.load_state_dict({**weights, _TIED: weights["embedding.weight"]})
    return model


def model_sha256(model: AttentionGenerator) -> str:
    """Hex digest over names, shapes and float32 values, in the model's own order."""
    digest = hashlib.sha256(FORMAT.encode())
    for name, value in model.named_parameters():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def released_sha256(start_sha256: str, vector: Tensor) -> str:
    """The name of a released model: hex digest over what it started from and what training made.

    `vector` (d,) float32 holds the trainable parameters; the frozen ones are those of the start.
    """
    digest = hashlib.sha256(FORMAT.encode() + bytes.fromhex(start_sha256))
    digest.update(vector.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


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
