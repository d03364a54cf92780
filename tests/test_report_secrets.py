"""Where clients are drawn in secret, nothing that an outsider may read says how many were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedattn.audit import audit
from fedattn.flower.observer import RoundSummary
from fedattn.report import read_report
from fedattn.report.charts import charts
from fedattn.signing import SigningKey
from fedattn.tracking.released import PARTICIPATION, round_values
from tests.run_builder import CROWD, PIN, SERVER, Run, config, failed, resign_report, sampled


def drawn(count: int) -> Callable[[list[SigningKey], int], list[SigningKey]]:
    return lambda devices, number: [] if number == 3 else devices[:count]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round each is released, aborted, skipped, cut off."""
    folder = tmp_path_factory.mktemp("secret") / "run"
    return Run(folder, sampled(), devices=CROWD, cohort=drawn(5)).write()


def test_a_report_counts_nobody_where_clients_are_drawn_in_secret(secret: Path) -> None:
    told = read_report(secret).rounds
    assert [each.outcome for each in told] == ["released", "aborted", "skipped", "unfinished"]
    for each in told:
        assert (each.contacted, each.survivors, each.dropouts) == (None, None, None)
    assert audit(secret, server_key=PIN).ok


def test_cohorts_of_other_sizes_give_the_same_rounds_and_page(secret: Path, tmp_path: Path) -> None:
    larger = Run(tmp_path / "run", sampled(), devices=CROWD, cohort=drawn(6)).write()
    ours, theirs = (json.loads((run / "report.json").read_bytes()) for run in (secret, larger))
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ <= {"ledger", "created_at"}  # (the head is a hash of salted commitments and keys)
    assert ours["ledger"]["entries"] == theirs["ledger"]["entries"]


def test_the_page_says_why_it_draws_no_clients(secret: Path, tmp_path: Path) -> None:
    assert "Clients, round by round" not in [each.title for each in charts(read_report(secret))]
    page = (secret / "report.html").read_text()
    assert "Not told here. In each round every client was drawn at random at the rate 0.5" in page
    assert 'class="answered' not in page
    everyone = (Run(tmp_path / "run").write() / "report.html").read_text()
    assert "Not told here" not in everyone


@pytest.mark.parametrize("key", ["contacted", "survivors", "dropouts"])
def test_a_report_that_counts_all_the_same_is_a_finding(
    secret: Path, tmp_path: Path, key: str
) -> None:
    run = Run(tmp_path / "run", sampled(), devices=CROWD, cohort=drawn(5)).write()

    def tell(raw: dict[str, Any]) -> None:
        raw["rounds"][0][key] = 5

    resign_report(run, SERVER, tell)
    assert failed(audit(run, server_key=PIN)) == {"rounds"}


@pytest.mark.parametrize("chosen", [config(), sampled()], ids=["all", "sampled"])
def test_report_and_tracker_tell_or_hide_the_same(tmp_path: Path, chosen: Any) -> None:
    devices = CROWD[: chosen.data.clients]
    run = Run(tmp_path / "run", chosen, devices=devices, cohort=lambda all_, _: all_[:4]).write()
    first = read_report(run).rounds[0]
    assert first.epsilons is not None
    summary = RoundSummary(
        round=1,
        is_released=True,
        cohort=4,
        survivors=3,
        epsilons=first.epsilons,
        hypothetical=None,
        validation_bpb=None,
    )
    logged = round_values(summary, chosen)
    told = dict(zip(PARTICIPATION, (first.contacted, first.survivors, first.dropouts), strict=True))
    assert {key: logged.get(key) for key in PARTICIPATION} == told


def test_a_cohort_that_no_run_has_is_refused_by_name(tmp_path: Path) -> None:
    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "cohort": 10**12} if kind == "intent" else body

    from fedattn.errors import RunError

    with pytest.raises(RunError, match="the ledger's rounds: contacted"):
        Run(tmp_path / "run", body=forge).write()
