"""From a run to a folder that can be given away: weights, config.json, model card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Final

import fedattn
from fedattn.errors import RunError
from fedattn.found_model import FoundModel
from fedattn.model import count_parameters
from fedattn.printable import printable
from fedattn.released import (
    CARD_FILE,
    CONFIG_FILE,
    Released,
    Statement,
    statement_of,
    to_bytes,
    vocabulary_of,
    write_folder,
)
from fedattn.report import REPORT_FILE, Report, show_epsilon
from fedattn.signing import fingerprint

MODEL_FILE: Final = "model.safetensors"
_MARKUP: Final = re.compile(r"([\\`*_\[\]<>#|~&$])")


def export(found: FoundModel, out: Path) -> Released:
    """Write the model of `found` to the new folder `out`, the weights byte for byte.

    RunError if `out` is there, or `found` is a released folder already.
    """
    if found.released is not None:
        raise RunError(f"{found.where}: was exported already; copy the folder")
    return write_release(found, out, found.file.read_bytes(), changes=())


def write_release(
    found: FoundModel, out: Path, weights: bytes, *, changes: Sequence[str]
) -> Released:
    """Write `weights`, which were made of the model of `found` by `changes`, as a release."""
    shape, before = found.model.shape, found.released
    released = Released(
        fedattn_version=fedattn.__version__,
        name=_name(found),
        architecture=shape,
        vocabulary=vocabulary_of(shape.vocab_size),
        file=MODEL_FILE,
        file_sha256=sha256(weights).hexdigest(),
        changes=[*(before.changes if before else ()), *changes],
        privacy=_statement(found),
        notes=list(found.notes),
    )
    # counted before the weights were changed: pruned ones are parameters still
    parameters = count_parameters(found.model)
    card = model_card(released, found.report, parameters=parameters, size=len(weights))
    files = {MODEL_FILE: weights, CONFIG_FILE: to_bytes(released), CARD_FILE: card.encode()}
    write_folder(out, files)
    return released


def model_card(released: Released, report: Report | None, *, parameters: int, size: int) -> str:
    """The card as Markdown; texts of others can neither mark up nor control anything in it."""
    from jinja2 import Environment, StrictUndefined

    # Markdown, not HTML: `text` escapes both, and every value but a number goes through a filter
    environment = Environment(  # noqa: S701
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=False, keep_trailing_newline=True
    )
    environment.filters |= {"text": _escaped, "line": printable, "epsilon": show_epsilon}
    template = resources.files("fedattn").joinpath("assets/model_card.md.j2").read_text("utf-8")
    privacy = released.privacy
    return environment.from_string(template).render(
        released=released,
        fingerprint=privacy and fingerprint(bytes.fromhex(privacy.server_public_key)),
        quality=report and report.quality,
        samples=report.samples if report else [],
        parameters=f"{parameters:,}",
        size=f"{size:,}",
    )


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", printable(text))


def _name(found: FoundModel) -> str:
    if found.released is not None:
        return found.released.name
    if found.report is not None:
        return f"fedattn: {found.report.config.get('name', 'a run')}"
    return "fedattn: the public start" if found.where == "public" else "fedattn: a checkpoint"


def _statement(found: FoundModel) -> Statement | None:
    if found.released is not None:
        return found.released.privacy
    if found.report is None:
        return None
    stored = (Path(found.where) / REPORT_FILE).read_bytes()
    return statement_of(found.report, sha256(stored).hexdigest())
