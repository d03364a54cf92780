"""The model that the server holds between rounds, in memory and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedattn.checkpoint import (
    make_start,
    read_vector,
    released_sha256,
    write_vector,
)
from fedattn.config import Config
from fedattn.flower.checkpoints import Checkpoint, Checkpoints
from fedattn.model import trainable_names
from fedattn.resumption import Standing
from fedattn.server_optimizer import ServerOptimizer
from fedattn.update import Floats


class HeldModel:
    """The current model of the run in `run_dir`: its own, not the one that devices installed."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.model, self.start_sha256 = make_start(config.model, seed=config.seed)
        self._names = trainable_names(self.model, config.model.trainable)
        self.vector = read_vector(self.model, self._names)  # (d,) float32, what training changes
        self._optimizer = ServerOptimizer(config.train)
        self._checkpoints = Checkpoints(run_dir, self.start_sha256)
        self._config = config

    @property
    def sha256(self) -> str:
        """The name of the current model."""
        return released_sha256(self.start_sha256, self.vector)

    @property
    def dimension(self) -> int:
        """d, trainable parameters."""
        return len(self.vector)

    def reserve(self) -> None:
        """Take the disk space that the next model needs; RunError if there is none."""
        rounds = self._config.train.rounds
        self._checkpoints.reserve(self.dimension, self._optimizer.moments, rounds)

    def next(
        self, mean: Floats, number: int, curve: Sequence[dict[str, float]]
    ) -> tuple[str, Tensor]:
        """The model that the mean (d,) of round `number` makes: its name and vector, on disk.

        `curve` is kept beside it. The current model stays what it is until `take`.
        """
        if self._config.is_one_step:
            mean = -mean  # a mean gradient: the model moves against it
        vector = self._optimizer.step(self.vector, torch.from_numpy(mean), number)
        name = released_sha256(self.start_sha256, vector)
        self._checkpoints.save(name, Checkpoint(vector, self._optimizer.state, tuple(curve)))
        return name, vector

    def take(self, vector: Tensor) -> None:
        """Make `vector`, which the ledger names now, the current model; forget older ones."""
        self.vector = vector
        write_vector(self.model, self._names, vector)
        self.forget_others()

    def resume(self, standing: Standing) -> Sequence[dict[str, float]]:
        """Go back to the last release of a run; the validation curve that was kept with it.

        The run's disk is left as it is; RunError if the model is not on it.
        """
        if not standing.released_rounds:
            return ()
        kept = self._checkpoints.load(standing.model)
        self.vector = kept.vector
        write_vector(self.model, self._names, kept.vector)
        self._optimizer.resume(kept.vector, kept.optimizer)
        return kept.validation

    def forget_others(self) -> None:
        """Remove from disk what is not the current model: older ones, one that no line names."""
        self._checkpoints.keep_only(self.sha256)

    def forget(self) -> None:
        """Remove the checkpoints: the run is finished."""
        self._checkpoints.remove()
