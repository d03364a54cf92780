"""Runs without masks: the released models of runs with them, and loud about what they skipped."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedattn.audit import VERIFIED, audit, audit_table
from fedattn.config import ROWS, Config
from fedattn.entries import Open, Release
from fedattn.errors import RunError
from fedattn.flower.record import Terms
from fedattn.ledger import read_ledger
from fedattn.privacy.claims import AS_IF_MASKED, MASKS_SKIPPED, assumptions, claims, labels
from fedattn.progress import privacy_table
from fedattn.simulate import simulate
from tests.federation import conversations, tiny, write

WIDE = {"outsider": 200.0}
MODES: dict[str, dict[str, Any]] = {
    "conversation/local": {},
    "conversation/distributed": {
        "privacy": {"noise": "distributed", "epsilon_budget": WIDE},
        "train": {"local_steps": 1},
    },
    "conversation/server": {
        "privacy": {"noise": "server", "epsilon_budget": WIDE},
        "train": {"local_steps": 1},
    },
    "client/distributed": {
        "privacy": {
            "unit": "client",
            "noise": "distributed",
            "client_rate": 0.8,
            "epsilon_budget": WIDE,
        },
        "data": {"clients": 7},
    },
    "none": {"privacy": {"unit": "none", "noise": "none", "epsilon_budget": None}},
}
# one device is lost with its upload, another after it, when its vector is in the sum
FAULTS = [
    {"round": 1, "stage": "upload", "clients": 1},
    {"round": 2, "stage": "confirm", "clients": 1},
]


def config(data: Path, kind: str, mode: str, **more: Any) -> Config:
    changes = {"secure_aggregation": kind, "workers": 0, **MODES[mode], **more}
    return tiny(data, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(folder):
    data = write(folder / "data.jsonl", conversations())

    @cache
    def of(kind: str, mode: str, seed: int | None = 5) -> Any:
        run_dir = folder / f"{kind}-{mode.replace('/', '-')}-{seed}"
        run_dir.mkdir()
        faults = FAULTS if seed is not None else []
        return simulate(config(data, kind, mode, seed=seed, faults=faults), run_dir)

    return of


@pytest.mark.parametrize("mode", MODES)
def test_released_models_are_those_with_masks_bit_for_bit(finished, mode):
    """Of a seeded run, device lost or not; and so are survivors, epsilons and quality."""
    masked, plain = finished("masked", mode), finished("arithmetic", mode)
    bodies = [
        [entry.body for entry in read_ledger(each.run_dir / "ledger.jsonl")]
        for each in (masked, plain)
    ]
    released = [[b for b in each if isinstance(b, Release)] for each in bodies]
    assert released[0]
    assert [b.model_after for b in released[0]] == [b.model_after for b in released[1]]
    assert [b.survivors_sha256 for b in released[0]] == [b.survivors_sha256 for b in released[1]]
    assert [entry[0].secure_aggregation for entry in bodies] == ["masked", "arithmetic"]
    ours, theirs = plain.report, masked.report
    assert ours.model.final_sha256 == theirs.model.final_sha256
    assert ours.totals.epsilons == theirs.totals.epsilons
    assert ours.quality == theirs.quality
    assert (ours.secure_aggregation, theirs.secure_aggregation) == ("arithmetic", "masked")


@pytest.mark.parametrize("mode", MODES)
def test_every_output_says_so_loudly_and_no_masked_one_does(finished, mode):
    for kind in ("masked", "arithmetic"):
        run = finished(kind, mode)
        stored = (run.run_dir / "report.json").read_text()
        page = (run.run_dir / "report.html").read_text()
        checked = audit(run.run_dir, server_key=run.server_fingerprint)
        assert checked.ok, checked.verdict
        finding = next(each for each in checked.findings if each.check == "masks")
        said = [
            any(note.startswith(MASKS_SKIPPED) for note in json.loads(stored)["notes"]),
            'class="alarm">MASKS SKIPPED' in page,
            "as if masked" in page,
            MASKS_SKIPPED in checked.verdict,
            MASKS_SKIPPED in finding.detail,
            any(label.startswith(MASKS_SKIPPED) for label in checked.labels),
            checked.to_json()["secure_aggregation"] == "arithmetic",
            "as if masked" in shown(privacy_table(run.report)),
            MASKS_SKIPPED in shown(audit_table(checked)),
            all(MASKS_SKIPPED in claim.assumptions[0] for claim in run.report.claims),
        ]
        assert said == [kind == "arithmetic"] * len(said)


def shown(table: Any) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_rows_that_rely_on_masks_say_as_if_and_the_others_that_they_do_not(tmp_path):
    """Of private runs. Without masks the server's own row is that of an unmasked update."""

    def first(mode: str) -> dict[str, str]:
        made = claims(config(tmp_path, "arithmetic", mode), [])
        return {claim.row: claim.assumptions[0] for claim in made}

    for mode in ("conversation/distributed", "client/distributed"):
        rows = first(mode)
        assert all(line.startswith(AS_IF_MASKED) for line in rows.values())
        assert "no guarantee against whoever ran this one" in rows["server"]
        assert rows["collusion"] == rows["server"]
        assert "shown none of them" in rows["outsider"]
        assert "all that holds" in rows["unmasked"]
    rows = first("conversation/server")
    assert rows["outsider"].startswith(AS_IF_MASKED)
    assert all("not sums alone" in rows[row] for row in ("server", "collusion", "unmasked"))
    assert all("does not rely on masks" in line for line in first("conversation/local").values())


@pytest.mark.parametrize("mode", MODES)
def test_epsilons_and_the_other_sentences_are_those_with_masks(tmp_path, mode):
    plain, masked = (config(tmp_path, kind, mode) for kind in ("arithmetic", "masked"))
    for ours, theirs in zip(claims(plain, []), claims(masked, []), strict=True):
        assert (ours.epsilon, ours.delta) == (theirs.epsilon, theirs.delta)
        same = [line.replace("securely aggregated sum", "sum") for line in theirs.assumptions]
        assert list(ours.assumptions[1:]) == same
    assert set(assumptions(masked)) <= set(assumptions(plain))
    added = set(assumptions(plain)) - set(assumptions(masked))
    assert len(added) == {"local": 0, "none": 0, "server": 1, "distributed": 2}[plain.privacy.noise]
    assert len(labels(plain)) == len(labels(masked)) + 1
    assert ("epsilon" in labels(plain)[-1]) == (mode != "none")
    assert not any(MASKS_SKIPPED in label for label in labels(masked))


def test_a_private_run_keeps_its_finite_rows_and_its_verdict_says_what_was_skipped(finished):
    run = finished("arithmetic", "conversation/distributed", None)
    checked = audit(run.run_dir, server_key=run.server_fingerprint)
    assert checked.ok
    assert checked.verdict.startswith(VERIFIED)
    assert checked.verdict.endswith(
        "; MASKS SKIPPED: no update was hidden from whoever ran it, every epsilon is AS IF MASKED"
    )
    finite = [claim.row for claim in run.report.claims if claim.epsilon < 1e9]
    assert set(finite) >= {"outsider", "server", "collusion"}
    assert set(run.report.totals.epsilons) == set(ROWS)


def test_the_first_line_of_the_ledger_says_so(finished):
    run = finished("arithmetic", "conversation/distributed")
    opened = read_ledger(run.run_dir / "ledger.jsonl")[0].body
    assert isinstance(opened, Open)
    assert opened.secure_aggregation == opened.config["secure_aggregation"] == "arithmetic"


@pytest.mark.parametrize(
    ("held_by", "created_by"),
    [("simulation", "deployment"), ("server", "simulate"), ("the notary", "deployment")],
)
def test_a_run_that_is_no_simulation_is_refused_before_anyone_is_contacted(
    tmp_path, held_by, created_by
):
    terms = Terms(authority_held_by=held_by, created_by=created_by)
    terms.require_fit(config(tmp_path, "masked", "none"))
    with pytest.raises(RunError, match=r"arithmetic is for simulations.*use .*masked"):
        terms.require_fit(config(tmp_path, "arithmetic", "none"))
