"""Where a model is, and what is known of it: a run, a released folder, a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import as_file, files
from os import PathLike
from pathlib import Path
from typing import Final, Literal

from fedattn.checkpoint import load_model
from fedattn.compressed import is_compressed, load_compressed
from fedattn.config import config_from_dict
from fedattn.durable import read_regular
from fedattn.errors import ConfigError, RunError
from fedattn.model import AttentionGenerator
from fedattn.privacy.claims import labels
from fedattn.released import CONFIG_FILE, Released, read_released
from fedattn.report import REPORT_FILE, Report, read_report
from fedattn.start import PUBLIC

UNKNOWN: Final = "PRIVACY UNKNOWN: no report came with this checkpoint"


@dataclass(frozen=True)
class FoundModel:
    """A model, the file it is in, and the notes that must be shown with it.

    `report` is the run's, if the model was found in its directory; its signature is the audit's
    to check, but its config is one. `released` is what an exported folder says.
    """

    where: Path | Literal["public"]
    file: Path
    model: AttentionGenerator
    notes: tuple[str, ...]
    report: Report | None = None
    released: Released | None = None


def find_model(where: str | PathLike[str]) -> FoundModel:
    """The model in `where`; RunError or ModelError says what is missing or does not fit."""
    if where == "public":
        with as_file(files("fedattn") / "assets" / PUBLIC) as file:
            return FoundModel("public", file, load_model(file), ())
    path = Path(where)
    if path.is_file():
        return FoundModel(path, path, _model_of(path), (UNKNOWN,))
    if not path.is_dir():
        raise RunError(
            f"{path}: no such run; `fedattn simulate` prints where it is. A .safetensors file or "
            "`public` will do too"
        )
    return _of_released(path) if (path / CONFIG_FILE).is_file() else _of_run(path)


def _of_run(run_dir: Path) -> FoundModel:
    report = read_report(run_dir)
    try:
        config = config_from_dict(report.config, where=f"{run_dir / REPORT_FILE}: config")
    except ConfigError as error:
        raise RunError(f"{error}\n  no run has such a config: `fedattn audit` it") from None
    file = run_dir / report.model.file
    require_sha256(file, report.model.file_sha256, named_by=run_dir / REPORT_FILE)
    # A report of anybody's may have left out what its config demands
    notes = tuple(dict.fromkeys([*labels(config), *report.notes]))
    return FoundModel(run_dir, file, load_model(file), notes, report)


def _of_released(folder: Path) -> FoundModel:
    released = read_released(folder)
    file = folder / released.file
    require_sha256(file, released.file_sha256, named_by=folder / CONFIG_FILE)
    model = _model_of(file)
    if model.shape != released.architecture:
        raise RunError(f"{folder / CONFIG_FILE}: its architecture is not that of {file}")
    return FoundModel(folder, file, model, tuple(released.notes), released=released)


def _model_of(file: Path) -> AttentionGenerator:
    return load_compressed(file) if is_compressed(file) else load_model(file)


def require_sha256(file: Path, wanted: str, *, named_by: Path) -> None:
    """RunError unless `file` is, byte for byte, the one that `named_by` names."""
    try:
        found = sha256(read_regular(file)).hexdigest()
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror}); {named_by} names it") from None
    if found != wanted:
        raise RunError(
            f"{file}: sha256 {found[:16]}... is not the {wanted[:16]}... that {named_by} names; it "
            "was changed or replaced: restore the file that was written with it"
        )
