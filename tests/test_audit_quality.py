"""What a report says of quality is of released rounds, and of the frozen protocol where it can be.

The figures themselves no audit can check: it runs no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedattn.audit import audit
from fedattn.config import Architecture, Config, config_from_dict
from fedattn.protocol import DATA, EXAMPLES, PROTOCOL
from fedattn.report import Report
from tests.run_builder import PIN, SERVER, Run, config, failed, resign_report, weights_file


def frozen(**changes: Any) -> Config:
    """A config that measures on the frozen protocol."""
    raw = config().model_dump(mode="json")
    raw["data"] = {**DATA.model_dump(mode="json"), "clients": 4, **changes}
    raw["eval"]["examples"] = EXAMPLES
    return config_from_dict(raw)


def naming(examples: int = EXAMPLES) -> Callable[[Report], Report]:
    def named(report: Report) -> Report:
        quality = report.quality.model_copy(update={"protocol": PROTOCOL, "examples": examples})
        return report.model_copy(update={"quality": quality})

    return named


def test_the_frozen_protocol_is_named_by_a_run_that_holds_out_its_people(tmp_path: Path) -> None:
    result = audit(Run(tmp_path / "run", frozen(), report=naming()).write(), server_key=PIN)
    assert result.ok
    told = next(f.detail for f in result.findings if f.check == "quality")
    assert told == f"the server's word, on the replies of {PROTOCOL}"


@pytest.mark.parametrize(
    "changes",
    [
        {"salt": "another"},
        {"validation_share": 0.2},
        {"test_share": 0.05},
        {"min_turns": 2},
        {"max_reply_bytes": 64},
        {"source": "jsonl", "path": "mine.jsonl"},
    ],
    ids=str,
)
def test_a_run_on_other_people_cannot_name_the_frozen_protocol(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = Run(tmp_path / "run", frozen(**changes), report=naming()).write()
    assert failed(audit(run, server_key=PIN)) == {"quality"}


def test_nor_can_a_run_with_another_vocabulary(tmp_path: Path) -> None:
    raw = frozen().model_dump(mode="json")
    raw["model"].update(start="random", architecture={"vocab_size": 8192})
    run = Run(tmp_path / "run", config_from_dict(raw), report=naming()).write()
    assert failed(audit(run, server_key=PIN)) == {"quality"}


@pytest.mark.parametrize(
    "stored",
    [
        weights_file(Architecture(vocab_size=8192)),
        weights_file(Architecture(context_tokens=32)),
        b"",
        b"no model at all",
        b"\x02\0\0\0\0\0\0\0[]",
    ],
    ids=["vocabulary", "context", "empty", "noise", "header"],
)
def test_nor_can_a_run_whose_start_is_a_file_of_another_shape(
    tmp_path: Path, stored: bytes
) -> None:
    run = Run(tmp_path / "run", frozen(), report=naming()).write()
    (run / "model.safetensors").write_bytes(stored)
    digest = hashlib.sha256(stored).hexdigest()
    resign_report(run, SERVER, lambda raw: raw["model"].update(file_sha256=digest))
    assert failed(audit(run, server_key=PIN)) == {"quality"}


def test_nor_can_a_run_with_fewer_replies(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", frozen(), report=naming(200)).write()
    assert failed(audit(run, server_key=PIN)) == {"quality"}


@pytest.mark.parametrize("told", [[2], [77], [1, 1], [3, 1], [1, 3, 4]], ids=str)
def test_validation_is_told_of_released_rounds_once_and_in_order(
    tmp_path: Path, told: list[int]
) -> None:
    run = Run(tmp_path / "run").write()
    points = [{"round": number, "bpb": 2.0} for number in told]
    resign_report(run, SERVER, lambda raw: raw["quality"].update(validation=points))
    assert failed(audit(run, server_key=PIN)) == {"quality"}
