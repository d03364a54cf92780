"""Every sabotage of the accounting that leaves a trace in events, ledger or report is named.

Each is made by the real server under its real key, with instructions and confirmations to match.
What leaves no trace (a device that adds no noise, draws that are not secret) is an assumption of
the report and is left to tests of the mechanism.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedattn.audit import audit, audit_table
from fedattn.config import config_from_dict
from fedattn.privacy.events import SkellamSum, round_event
from fedattn.privacy.rows import spends
from fedattn.signing import SigningKey
from tests.run_builder import (
    CROWD,
    PIN,
    PRETENDS,
    SERVER,
    STRANGER,
    Run,
    failed,
    resign_report,
    sampled,
    summed,
)


def five(devices: list[SigningKey], number: int) -> list[SigningKey]:
    """Cohorts that a rate of one half explains."""
    return [devices[(number * 3 + i) % 8] for i in range(5)]


def ordered(devices: list[SigningKey], number: int) -> list[SigningKey]:
    chosen = five(devices, number)
    return [key for key in devices if key in chosen]


def crowd(path: Path, **parts: Any) -> Run:
    """A run whose clients are sampled."""
    return Run(path, **{"config": sampled(), "devices": CROWD, "cohort": ordered, **parts})


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("wholes")
    return {
        "summed": Run(base / "summed", config=summed()).write(),
        "server": Run(base / "server", config=summed(noise="server")).write(),
        "sampled": crowd(base / "sampled").write(),
        "hypothetical": crowd(base / "hypothetical", config=sampled(hypothetical=PRETENDS)).write(),
    }


@pytest.mark.parametrize("mode", ["summed", "server", "sampled", "hypothetical"])
def test_a_run_of_every_mode_passes_and_its_rows_are_those_of_the_report(
    wholes: dict[str, Path], mode: str
) -> None:
    result = audit(wholes[mode], server_key=PIN)
    assert result.ok, [finding for finding in result.findings if not finding.ok]
    report, shown = json.loads((wholes[mode] / "report.json").read_bytes()), result.to_json()
    assert shown["epsilons"] == report["totals"]["epsilons"]
    assert shown["epsilon"] == shown["epsilons"]["outsider"]
    assert (shown["hypothetical_epsilons"] is None) == (mode != "hypothetical")


SABOTAGED_EVENTS: dict[str, Callable[[SkellamSum], SkellamSum]] = {
    "noise over ten": lambda e: replace(
        e,
        released_variance=e.released_variance / 100,
        participant_variance=e.participant_variance / 100,
        honest_variance=e.honest_variance / 100,
        share_variance=e.share_variance / 100,
    ),
    "sensitivity understated": lambda e: replace(e, l2=e.l2 / 2, l1=e.l1 / 2),
    # shares of mu / n, so that survivors short of n add less than mu, stated as if they did not
    "shares sized for n": lambda e: replace(
        e,
        participant_variance=e.participant_variance * 4 / 2,
        honest_variance=e.honest_variance * 4 / 2,
    ),
    "records sampled less": lambda e: replace(e, record_rate=e.record_rate / 10),
    "clients sampled less": lambda e: replace(e, client_rate=0.1),
    "padding left out": lambda e: replace(e, coordinates=e.coordinates - 1),
}


@pytest.mark.parametrize("sabotage", SABOTAGED_EVENTS)
def test_an_event_other_than_the_configs_is_named(tmp_path: Path, sabotage: str) -> None:
    honest = round_event(summed(), 10)
    assert isinstance(honest, SkellamSum)
    forged = Run(tmp_path / "run", config=summed(), event=SABOTAGED_EVENTS[sabotage](honest))
    assert "events" in failed(audit(forged.write(), server_key=PIN))


def test_an_accountant_that_starts_anew_each_round_is_named(
    wholes: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(wholes["summed"], tmp_path / "run"))
    last = spends(summed(), [round_event(summed(), 10)])

    def reset(raw: dict[str, Any]) -> None:
        raw["totals"]["epsilons"] = {row: cost.epsilon for row, cost in last.items()}
        raw["totals"]["epsilon"] = last["outsider"].epsilon

    resign_report(run, SERVER, reset)
    assert failed(audit(run, server_key=PIN)) == {"epsilon"}


@pytest.mark.parametrize("row", [1, 2, 3])
def test_a_single_row_understated_is_named(
    wholes: dict[str, Path], tmp_path: Path, row: int
) -> None:
    run = Path(shutil.copytree(wholes["summed"], tmp_path / "run"))
    resign_report(run, SERVER, lambda raw: raw["claims"][row].update(epsilon=0.5))
    assert failed(audit(run, server_key=PIN)) == {"claims"}
    resign_report(run, SERVER, lambda raw: raw["claims"][row].update(failures=1e-9))
    assert failed(audit(run, server_key=PIN)) == {"claims"}


def test_a_round_without_its_intent_is_named(tmp_path: Path) -> None:
    forged = Run(tmp_path / "run", config=summed(), hidden_intent=3).write()
    assert "ledger grammar" in failed(audit(forged, server_key=PIN))


@pytest.mark.parametrize("edit", ["raised", "dropped"])
def test_an_edited_budget_of_a_row_is_named(
    wholes: dict[str, Path], tmp_path: Path, edit: str
) -> None:
    def change(raw: dict[str, Any]) -> None:
        budgets = raw["totals"]["budgets"]
        budgets.update(server=19.0) if edit == "raised" else budgets.pop("server")

    run = Path(shutil.copytree(wholes["summed"], tmp_path / "run"))
    resign_report(run, SERVER, change)
    assert failed(audit(run, server_key=PIN)) == {"budget and delta"}


def test_a_passed_budget_of_one_row_alone_is_named(tmp_path: Path) -> None:
    tight = summed(epsilon_budget={"outsider": 8.0, "unmasked": 0.5})
    result = audit(Run(tmp_path / "run", config=tight).write(), server_key=PIN)
    assert failed(result) == {"budget and delta"}
    assert "budget and delta" in result.verdict
    assert any("unmasked: spent" in finding.detail for finding in result.findings)


def test_one_round_with_a_lower_threshold_is_named(tmp_path: Path) -> None:
    def lower(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "threshold": 3} if kind == "intent" and body["round"] == 4 else body

    forged = crowd(tmp_path / "run", body=lower).write()
    assert failed(audit(forged, server_key=PIN)) == {"cohorts"}


@pytest.mark.parametrize(
    ("cohort", "detail"),
    [
        (lambda devices, number: [*devices[:4], STRANGER], "not a part"),
        (lambda devices, number: [*devices[:4], devices[0]], "listed twice"),
        (lambda devices, number: devices[4::-1], "in that order"),
    ],
)
def test_a_roster_that_is_no_part_of_the_runs_is_named(
    tmp_path: Path, cohort: Callable[[list[SigningKey], int], list[SigningKey]], detail: str
) -> None:
    result = audit(crowd(tmp_path / "run", cohort=cohort).write(), server_key=PIN)
    assert any(f.check == "cohorts" and detail in f.detail for f in result.findings if not f.ok)


def test_leaving_a_device_out_where_all_are_asked_is_named(tmp_path: Path) -> None:
    forged = Run(tmp_path / "run", config=summed(), cohort=lambda devices, number: devices[:3])
    assert failed(audit(forged.write(), server_key=PIN)) == {"cohorts"}


def test_confirmations_from_outside_the_round_do_not_count(tmp_path: Path) -> None:
    forged = crowd(
        tmp_path / "run", cohort=lambda devices, number: devices[:5], cosigners=CROWD[2:6]
    )
    assert failed(audit(forged.write(), server_key=PIN)) == {"co-signatures"}


def test_skips_take_the_place_of_rounds_in_sampled_runs_alone(tmp_path: Path) -> None:
    def cohort(devices: list[SigningKey], number: int) -> list[SigningKey]:
        return [] if number == 1 else ordered(devices, number)

    skipping = audit(crowd(tmp_path / "sampled", cohort=cohort).write(), server_key=PIN)
    assert skipping.ok, skipping.verdict
    forged = Run(
        tmp_path / "all", config=summed(), cohort=lambda d, number: [] if number == 1 else d
    )
    assert failed(audit(forged.write(), server_key=PIN)) == {"ledger grammar"}
    capped = Run(
        tmp_path / "capped",
        config=summed(max_participations=3),
        cohort=lambda d, number: [] if number == 4 else d,
    )
    assert audit(capped.write(), server_key=PIN).ok  # nobody was left to ask


def test_a_participation_too_many_is_named(tmp_path: Path) -> None:
    capped = sampled(max_participations=3)
    asked = ordered(CROWD, 1), ordered(CROWD, 2), ordered(CROWD, 3), ordered(CROWD, 4)
    busiest = max(sum(key in cohort for cohort in asked) for key in CROWD)
    fine = audit(crowd(tmp_path / "fine", config=capped).write(), server_key=PIN)
    assert (busiest, fine.ok) == (3, True), fine.verdict
    forged = crowd(tmp_path / "run", config=sampled(max_participations=2))
    assert failed(audit(forged.write(), server_key=PIN)) == {"participations"}


def test_cohorts_that_the_stated_rate_does_not_explain_are_named(tmp_path: Path) -> None:
    claimed = sampled().model_dump(mode="json")
    claimed["train"]["rounds"] = 20
    rounds = config_from_dict(claimed)

    def run(name: str, cohort: Callable[[list[SigningKey], int], list[SigningKey]]) -> set[str]:
        forged = crowd(tmp_path / name, config=rounds, cohort=cohort, more_rounds=16)
        return failed(audit(forged.write(), server_key=PIN))

    assert run("fair", ordered) == set()
    assert run("all", lambda devices, number: devices) == {"client sampling"}


HIDING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "label": lambda raw: raw["notes"].pop(0),
    "section": lambda raw: raw.update(hypothetical=None),
    "cohort": lambda raw: raw["hypothetical"].update(cohort=400),
    "epsilon": lambda raw: raw["hypothetical"]["epsilons"].update(outsider=0.1),
    "claim": lambda raw: raw["hypothetical"]["claims"][0].update(epsilon=0.1),
    "words": lambda raw: raw["hypothetical"]["claims"][0]["assumptions"].pop(0),
}


@pytest.mark.parametrize("hidden", HIDING)
def test_hiding_that_a_run_is_hypothetical_is_named(
    wholes: dict[str, Path], tmp_path: Path, hidden: str
) -> None:
    run = Path(shutil.copytree(wholes["hypothetical"], tmp_path / "run"))
    resign_report(run, SERVER, HIDING[hidden])
    sentences = {"assumptions and caveats"} if hidden == "label" else set()
    assert failed(audit(run, server_key=PIN)) == {"hypothetical"} | sentences


def test_the_pretended_epsilon_as_headline_is_named(
    wholes: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(wholes["hypothetical"], tmp_path / "run"))

    def boast(raw: dict[str, Any]) -> None:
        raw["totals"]["epsilon"] = raw["hypothetical"]["epsilons"]["outsider"]

    resign_report(run, SERVER, boast)
    assert failed(audit(run, server_key=PIN)) == {"epsilon"}


def test_the_audit_of_a_hypothetical_run_is_titled_so(wholes: dict[str, Path]) -> None:
    from io import StringIO

    from rich.console import Console

    def shown(run: Path) -> str:
        out = StringIO()
        Console(file=out, width=150).print(audit_table(audit(run)))
        return out.getvalue()

    assert "Audit of a HYPOTHETICAL run" in shown(wholes["hypothetical"])
    assert "HYPOTHETICAL" not in shown(wholes["sampled"])
