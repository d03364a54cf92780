"""A model as it is released: a folder with weights, `config.json` and a model card.

The folder can be loaded (`found_model`) and says by itself what was promised and to whom. It is
not signed: `config.json` names the run's report by its hash, which an audit of the run vouches for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedattn.config import Architecture
from fedattn.durable import part_of, put_in_place, read_regular, write_durably
from fedattn.entries import Hash
from fedattn.errors import RunError
from fedattn.report.shape import ClaimSection, FileName, Report, problems
from fedattn.tokens import SPECIALS

FORMAT: Final = "fedattn-released/1"
CONFIG_FILE: Final = "config.json"
CARD_FILE: Final = "README.md"
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9 .:_-]*$"  # of plain characters: it is a heading
LICENCE: Final = (
    "The code that loads this model is Apache-2.0. The weights follow from the start model's "
    "sources (fedattn's model card of the public start) and from the conversations named here: "
    "who publishes the weights answers for the terms of both."
)


class Section(BaseModel):
    """A block of config.json: unknown keys and quiet type changes are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Vocabulary(Section):
    """The first `size` ids of GPT-2's byte-level BPE; `specials` come after them."""

    size: int
    specials: dict[str, int]


class Statement(Section):
    """What the run's report promises; `claims` has one row per adversary."""

    adjacency: str
    claims: list[ClaimSection]
    assumptions: list[str]
    caveats: list[str]
    data_set: str
    start_sha256: Hash
    final_sha256: Hash
    report_sha256: Hash  # of the bytes of report.json
    server_public_key: Hash  # who signed it


class Released(Section):
    """`config.json`."""

    format: Literal["fedattn-released/1"] = FORMAT
    fedattn_version: str
    name: Annotated[str, Field(pattern=_NAME, max_length=200)]
    architecture: Annotated[Architecture, Field(strict=False)]
    vocabulary: Vocabulary
    file: FileName
    file_sha256: Hash
    changes: list[str]  # what was done to the weights since training, in order
    privacy: Statement | None  # None: no report came with the model
    notes: list[str]  # what must be said loudly
    licence: str = LICENCE


def statement_of(report: Report, report_sha256: str) -> Statement:
    """What `report` promises; the hash is that of its stored bytes."""
    return Statement(
        adjacency=report.adjacency,
        claims=report.claims,
        assumptions=report.assumptions,
        caveats=report.caveats,
        data_set=report.data_set,
        start_sha256=report.model.start_sha256,
        final_sha256=report.model.final_sha256,
        report_sha256=report_sha256,
        server_public_key=report.ledger.server_public_key,
    )


def vocabulary_of(size: int) -> Vocabulary:
    """The ids of `tokens.Tokenizer(size)`."""
    return Vocabulary(size=size, specials={name: size + i for i, name in enumerate(SPECIALS)})


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` with `files`: whole or not at all. RunError if it is there already."""
    if folder.exists() or folder.is_symlink():
        raise RunError(f"{folder}: exists and is not overwritten; choose another --out")
    part = part_of(folder)
    try:
        part.mkdir(parents=True)
        for name, stored in files.items():
            write_durably(part / name, stored)
        put_in_place(part, folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); remove {part}") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def to_bytes(released: Released) -> bytes:
    """`config.json` as stored."""
    return json.dumps(released.model_dump(mode="json"), indent=2, allow_nan=False).encode() + b"\n"


def read_released(folder: Path) -> Released:
    """`config.json` of `folder`; RunError says what does not fit."""
    path = folder / CONFIG_FILE
    try:
        raw = json.loads(read_regular(path))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise RunError(f"{path}: not valid JSON; export the model again") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise RunError(f"{path}: not of format {FORMAT}; export the model with this fedattn")
    try:
        return Released.model_validate(raw)
    except ValidationError as error:
        raise RunError(f"{path}: {problems(error)}; export the model again") from None
