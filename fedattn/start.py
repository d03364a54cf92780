"""What a checkpoint holds and how models are named, without torch.

A device says which model it has installed before it trains, and an auditor or a stage that only
speaks the protocol should not wait seconds for torch. Weights in half precision are read as the
float32 values that `checkpoint.load_model` trains from, so both name the same model alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize, safe_open

from fedattn.config import Architecture, ModelConfig
from fedattn.errors import ModelError
from fedattn.parameters import parameter_shapes, trainable_count

Floats: TypeAlias = npt.NDArray[np.float32]
FORMAT: Final = "fedattn-model/1"
PUBLIC: Final = "public.safetensors"  # in fedattn/assets, with its model card beside it


class StartFacts(NamedTuple):
    """The installed start model: its shape and its name (hex)."""

    architecture: Architecture
    sha256: str


class Checkpoint(NamedTuple):
    """A file's weights by name, float32, in the model's own order."""

    architecture: Architecture
    weights: dict[str, Floats]


def start_dimension(config: ModelConfig) -> int:
    """d: trainable parameters of the installed start model."""
    shape = config.architecture
    if shape is None:
        shape = start_facts(config).architecture
    return trainable_count(shape, config.trainable)


def start_facts(config: ModelConfig) -> StartFacts:
    """Shape and hash of a start model that is a file; a random one exists in torch alone."""
    if config.start == "random":
        raise ModelError("model.start: random is no file; `checkpoint.start_model` makes it")
    if config.start == "public":
        with as_file(files("fedattn") / "assets" / PUBLIC) as path:
            return _facts(path)
    return _facts(Path(config.start))


def _facts(path: Path) -> StartFacts:
    try:
        state = path.stat()
    except OSError:
        read_checkpoint(path)  # raises with the reason
        raise
    return _remembered(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _remembered(path: Path, _changed_ns: int, _size: int) -> StartFacts:
    found = read_checkpoint(path)
    return StartFacts(found.architecture, weights_sha256(found.weights))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint as float32; ModelError says what does not fit."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        stored = dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
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
    expected = parameter_shapes(shape)
    if expected != {name: tuple(each["shape"]) for name, each in stored.items()}:
        raise ModelError(f"{path}: weights do not fit the architecture in its metadata")
    try:
        weights = {name: _float32(stored[name]) for name in expected}
    except KeyError:
        raise ModelError(f"{path}: weights are not floating-point numbers") from None
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise ModelError(f"{path}: weights are not finite")
    return Checkpoint(shape, weights)


def stated_architecture(stored: bytes) -> Architecture | None:
    """The shape in the metadata of a model file's bytes; None if they state none that is valid.

    No weight is looked at: whether they have this shape, `read_checkpoint` finds.
    """
    size = int.from_bytes(stored[:8], "little")  # of the header, JSON
    try:
        stated = json.loads(stored[8 : 8 + size])["__metadata__"]["architecture"]
        return Architecture.model_validate_json(stated)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _float32(stored: Mapping[str, Any]) -> Floats:
    if stored["dtype"] == "BF16":  # the upper half of a float32
        words = np.frombuffer(stored["data"], "<u2").astype(np.uint32) << 16
        return words.view(np.float32).reshape(stored["shape"])
    dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[stored["dtype"]]
    with np.errstate(over="ignore"):  # becomes inf, which is refused
        values = np.frombuffer(stored["data"], dtype).astype(np.float32)
    return values.reshape(stored["shape"])


def weights_sha256(weights: Mapping[str, Floats] | Iterable[tuple[str, Floats]]) -> str:
    """Hex digest over names, shapes and float32 values, in the model's own order."""
    digest = hashlib.sha256(FORMAT.encode())
    for name, value in weights.items() if isinstance(weights, Mapping) else weights:
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def vector_sha256(start_sha256: str, vector: Floats) -> str:
    """The name of a released model: hex digest over what it started from and what training made.

    `vector` (d,) float32 holds the trainable parameters; the frozen ones are those of the start.
    """
    digest = hashlib.sha256(FORMAT.encode() + bytes.fromhex(start_sha256))
    digest.update(np.ascontiguousarray(vector, np.float32).tobytes())
    return digest.hexdigest()
