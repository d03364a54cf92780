"""What a server keeps between rounds, so that a killed run goes on from its last release.

One safetensors file, `checkpoints/<name of the model>.safetensors`: the model's vector, the state
of the server's optimizer, and the validation curve so far in its metadata. It is on disk before the
ledger's release line that names it; older ones go after that line. So the model that a ledger
names last is always there, and one that it does not name is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedattn.checkpoint import released_sha256
from fedattn.durable import part_of, put_in_place
from fedattn.errors import RunError

FOLDER = "checkpoints"
_FORMAT: Final = "fedattn-checkpoint/1"
_VECTOR = "vector"
_SLACK_BYTES = 1 << 16  # header, names and curve
_POINT_BYTES = 100


@dataclass(frozen=True)
class Checkpoint:
    """A released model with what the next round needs beside it."""

    vector: Tensor  # (d,) float32
    optimizer: Mapping[str, Tensor]
    validation: tuple[dict[str, float], ...]


class Checkpoints:
    """The checkpoints of the run in `run_dir`, whose start model has the hash `start_sha256`."""

    def __init__(self, run_dir: Path, start_sha256: str) -> None:
        self.folder, self._start = run_dir / FOLDER, start_sha256
        self._reserved = part_of(self.folder / "next")

    def reserve(self, dimension: int, moments: int, rounds: int) -> None:
        """Take the disk space of one checkpoint, or RunError: before a round, not in it.

        moments: float64 vectors that the server's optimizer keeps.
        """
        size = dimension * (4 + 8 * moments) + _POINT_BYTES * rounds + _SLACK_BYTES
        try:
            self.folder.mkdir(exist_ok=True)
            handle = os.open(self._reserved, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.posix_fallocate(handle, 0, size)
            finally:
                os.close(handle)
        except OSError as error:
            raise RunError(
                f"{self.folder}: no room for a checkpoint of {size:,} bytes ({error.strerror}); "
                "nothing was sent; free space or make it writable, then resume or start anew"
            ) from None

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Bring the checkpoint of the model `name` to disk, into the reserved space."""
        tensors = {_VECTOR: checkpoint.vector, **checkpoint.optimizer}
        tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
        notes = {
            "format": _FORMAT,
            "state": _digest(checkpoint.optimizer),
            "validation": json.dumps(list(checkpoint.validation)),
        }
        stored = save(tensors, notes)
        try:
            with open(os.open(self._reserved, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.write(stored)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            put_in_place(self._reserved, self._path(name))
        except OSError as error:
            raise RunError(
                f"{self.folder}: the checkpoint cannot be written ({error.strerror}); the round is "
                "spent; free space, then resume"
            ) from None

    def load(self, name: str) -> Checkpoint:
        """The checkpoint of the model `name`; RunError unless its vector has that name."""
        path = self._path(name)
        try:
            stored = path.read_bytes()
            tensors, notes = load(stored), _metadata(stored)
            vector = tensors.pop(_VECTOR)
            curve = json.loads(notes["validation"])
            is_whole = (notes["format"], notes["state"]) == (_FORMAT, _digest(tensors))
        except (OSError, SafetensorError, ValueError, KeyError):
            raise RunError(f"{path}: missing or unreadable; the run cannot be resumed") from None
        if not is_whole or released_sha256(self._start, vector) != name:
            raise RunError(f"{path}: was changed; it is not the model that the ledger names")
        return Checkpoint(vector, tensors, tuple(curve))

    def keep_only(self, name: str) -> None:
        """Remove every checkpoint but the one of the model `name`, and whatever is half written."""
        kept = self._path(name)
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path != kept:
                with suppress(OSError):  # in the way of nothing
                    path.unlink()

    def remove(self) -> None:
        """Remove all: the run is finished, its model is in the run directory."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _metadata(stored: bytes) -> Mapping[str, str]:
    """A safetensors file begins with the length of its JSON header, u64, little-endian."""
    size = int.from_bytes(stored[:8], "little")
    found = json.loads(stored[8 : 8 + size])["__metadata__"]
    assert isinstance(found, dict)
    return found
