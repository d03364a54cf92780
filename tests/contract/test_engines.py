"""One contract, three engines: the same apps, the same ledger, the same model bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedattn.audit import audit
from fedattn.config import ROWS
from fedattn.contribution import records
from fedattn.entries import Release
from fedattn.ledger import read_ledger
from fedattn.plan import make_plan
from fedattn.policy import OwnData
from fedattn.tokens import Tokenizer
from tests.contract.cases import CASES, Case
from tests.contract.engines import Finished, deployed, simulated, write_shards
from tests.federation import conversations, write
from tests.marks import ON_RAY

ENGINES: dict[str, Callable[..., Finished]] = {
    "embedded": partial(simulated, "embedded"),
    "ray": partial(simulated, "ray"),
    "loopback": deployed,
}
MARKS = {"embedded": [], "ray": ON_RAY, "loopback": [pytest.mark.slow]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "data.jsonl", conversations())


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Callable[[str, Case], Finished]:
    """The finished run of a case on an engine; run once."""
    runs: dict[tuple[str, str], Finished] = {}

    def of(engine: str, case: Case) -> Finished:
        if (engine, case.name) not in runs:
            folder = tmp_path_factory.mktemp(engine)
            runs[engine, case.name] = ENGINES[engine](case.config(data), folder, case.decliners)
        return runs[engine, case.name]

    return of


def released(run: Finished) -> list[Release]:
    entries = read_ledger(run.run_dir / "ledger.jsonl")
    return [entry.body for entry in entries if isinstance(entry.body, Release)]


def on_every_engine(test: Callable[..., None]) -> Callable[..., None]:
    """Parametrized by engine and case."""
    each = pytest.mark.parametrize(
        "engine", [pytest.param(engine, marks=MARKS[engine]) for engine in ENGINES]
    )
    return each(pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])(test))


@on_every_engine
def test_a_run_ends_as_its_case_says(finished, engine, case):
    run = finished(engine, case)
    assert (run.report.outcome, run.exit_code) == (case.outcome, case.exit_code)
    entries = read_ledger(run.run_dir / "ledger.jsonl")
    assert tuple(entry.kind for entry in entries) == case.kinds
    if case.survivors is not None:
        assert tuple(release.survivors for release in released(run)) == case.survivors


@on_every_engine
def test_an_auditor_with_pinned_keys_finds_nothing(finished, engine, case):
    run = finished(engine, case)
    checked = audit(
        run.run_dir, server_key=run.server_key, authority=run.authority, roster=run.roster
    )
    assert checked.ok, [finding for finding in checked.findings if not finding.ok]


@on_every_engine
def test_epsilon_is_the_plans(finished, data, engine, case):
    planned = make_plan(case.config(data), is_probed=False).rows
    spent = json.loads((finished(engine, case).run_dir / "report.json").read_bytes())
    shown = {row: float(spent["totals"]["epsilons"][row]) for row in ROWS}
    assert shown == {row: planned[row].epsilon for row in ROWS}
    assert all(math.isinf(claim.epsilon) for claim in finished(engine, case).report.claims)


@on_every_engine
def test_released_models_equal_the_embedded_engines_bit_for_bit(finished, engine, case):
    run, other = finished(engine, case), finished("embedded", case)
    models = [release.model_after for release in released(run)]
    assert models == [release.model_after for release in released(other)]
    assert run.report.model.final_sha256 == other.report.model.final_sha256
    assert len(set(models)) == len(models)  # each round changes it


def test_a_shard_holds_what_the_simulation_gives_its_device(data, tmp_path):
    config, tokenizer = CASES[0].config(data), Tokenizer(260)
    for index, path in enumerate(write_shards(config, tmp_path)):
        own = records(OwnData(path=str(path)).config, 0, tokenizer)
        assert own == records(config.data, index, tokenizer)
        assert own
