"""What the server measures of a run, before and after, and the files that say so."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError

from fedattn.checkpoint import save_model
from fedattn.config import Config
from fedattn.durable import part_of, put_in_place
from fedattn.errors import RunError
from fedattn.flower.evaluation import Evaluation
from fedattn.ledger import LedgerEntry
from fedattn.model import AttentionGenerator
from fedattn.report import build_report, write_report
from fedattn.resumption import Standing
from fedattn.signing import SigningKey

MODEL_FILE = "model.safetensors"


class Results:
    """Quality on conversations that the server may see; `model` is as training starts from it."""

    def __init__(self, config: Config, model: AttentionGenerator) -> None:
        self._model, self._evaluation = model, Evaluation(config, model)
        self.before = self._evaluation.quality(self._evaluation.test)
        self._replies_before = self._evaluation.replies()
        self.validation: list[dict[str, float]] = []

    @property
    def is_measured(self) -> bool:
        """Whether there are held-out conversations."""
        return bool(self._evaluation.test)

    def measure(self, number: int) -> float | None:
        """Bits per byte of the model as round `number` released it; None without validation."""
        if not self._evaluation.progress:
            return None
        bpb = self._evaluation.quality(self._evaluation.progress).bpb
        self.validation.append({"round": number, "bpb": bpb})
        return bpb

    def resume(self, standing: Standing, validation: Sequence[dict[str, float]]) -> None:
        """Take up the curve of a run whose last model is in place.

        A checkpoint is older than its own round's point, which is measured again.
        """
        if standing.released_rounds:
            last = standing.released_rounds[-1]
            self.validation = [point for point in validation if point["round"] < last]
            self.measure(last)

    def write(self, run_dir: Path, entries: Sequence[LedgerEntry], key: SigningKey) -> None:
        """Write the model that a closed ledger ends with, then the signed report that names it.

        The report is last: with it the run is finished, without it `resume` writes both anew.
        """
        standing, path = Standing.of(entries), run_dir / MODEL_FILE
        after = self._evaluation.quality(self._evaluation.test)
        notes = {"start_sha256": standing.opened.start_sha256, "model_sha256": standing.model}
        part = part_of(path)
        try:
            save_model(part, self._model, notes=notes)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            put_in_place(part, path)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path}: cannot be written ({error}); free space, then resume"
            ) from None
        report = build_report(
            entries,
            quality={
                "bpb_before": _finite(self.before.bpb),
                "bpb_after": _finite(after.bpb),
                "examples": after.examples,
                "bytes": after.bytes,
                "protocol": self._evaluation.protocol,
                "validation": self.validation,
            },
            model_file=MODEL_FILE,
            model_file_sha256=sha256(path.read_bytes()).hexdigest(),
            samples=self._evaluation.samples(self._replies_before),
        )
        write_report(run_dir, report, key)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
