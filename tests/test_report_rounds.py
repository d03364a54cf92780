"""What a report tells round by round is what the ledger says, and the audit holds it to that."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedattn.audit import UNPINNED, VERIFIED, audit
from fedattn.config import config_from_dict
from fedattn.errors import RunError
from fedattn.privacy.accountants import spend
from fedattn.privacy.events import PoissonGaussian
from fedattn.report import Report, html, parse_report, read_report, render_html, rounds
from fedattn.report.charts import charts
from fedattn.report.drawing import bars
from fedattn.signing import SigningKey
from tests.planted import looking
from tests.run_builder import (
    CROWD,
    PIN,
    PRETENDS,
    SERVER,
    Run,
    config,
    failed,
    resign_report,
    sampled,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(tmp_path_factory.mktemp("rounds") / "run", report=looking).write()


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def five(devices: list[SigningKey], number: int) -> list[SigningKey]:
    return [] if number == 3 else devices[:5]


def test_each_round_has_its_outcome_and_who_took_part(good: Path) -> None:
    told = [
        (each.number, each.outcome, each.contacted, each.survivors, each.dropouts)
        for each in read_report(good).rounds
    ]
    assert told == [
        (1, "released", 4, 3, 1),
        (2, "aborted", 4, None, None),
        (3, "released", 4, 3, 1),
        (4, "unfinished", 4, None, None),
    ]


def test_each_round_costs_what_all_rounds_up_to_it_do(good: Path) -> None:
    report = read_report(good)
    for spent, each in enumerate(report.rounds, start=1):
        expected = spend([PoissonGaussian(0.1, 1.0, 3 * spent)], 1e-5).epsilon
        assert each.epsilons == dict.fromkeys(report.totals.epsilons, expected)
    assert report.rounds[-1].epsilons == report.totals.epsilons


def test_a_skipped_round_has_no_cost_and_a_pretended_one_is_priced_too(tmp_path: Path) -> None:
    pretended = sampled(hypothetical=PRETENDS)
    report = read_report(Run(tmp_path / "run", pretended, devices=CROWD, cohort=five).write())
    assert [each.outcome for each in report.rounds] == [
        "released",
        "aborted",
        "skipped",
        "unfinished",
    ]
    skipped, last = report.rounds[2:]
    assert (skipped.contacted, skipped.survivors, skipped.epsilons) == (None, None, None)
    assert report.hypothetical is not None
    assert last.hypothetical_epsilons == report.hypothetical.epsilons
    assert audit(tmp_path / "run", server_key=PIN).ok

    def lower(raw: dict[str, Any]) -> None:
        raw["rounds"][0]["hypothetical_epsilons"]["server"] *= 0.9

    resign_report(tmp_path / "run", SERVER, lower)
    assert failed(audit(tmp_path / "run", server_key=PIN)) == {"rounds"}


CHANGES: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "an epsilon": lambda told: told[1]["epsilons"].update(server=0.1),
    "an infinite one": lambda told: told[1]["epsilons"].update(server="infinity"),
    "no cost": lambda told: told[2].update(epsilons=None),
    "a cost that nothing pretends": lambda told: told[2].update(
        hypothetical_epsilons=told[2]["epsilons"]
    ),
    "an abort called a release": lambda told: told[1].update(
        outcome="released", survivors=4, dropouts=0
    ),
    "survivors": lambda told: told[0].update(survivors=4),
    "dropouts": lambda told: told[0].update(dropouts=0),
    "contacted": lambda told: told[3].update(contacted=3),
    "a round left out": lambda told: told.pop(1),
    "rounds swapped": lambda told: told.reverse(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_round_told_otherwise_than_by_the_ledger_is_a_finding(run: Path, what: str) -> None:
    resign_report(run, SERVER, lambda raw: CHANGES[what](raw["rounds"]))
    assert failed(audit(run, server_key=PIN)) == {"rounds"}


def test_of_a_long_run_some_rounds_are_priced_and_the_last_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "MOST_PRICED", 3)
    longer = config_from_dict(config().model_dump(mode="json") | {"train": {"rounds": 7}})
    report = read_report(Run(tmp_path / "run", longer, more_rounds=3).write())
    assert [each.epsilons is not None for each in report.rounds] == [
        True, False, False, True, False, False, True,
    ]  # fmt: skip
    assert report.rounds[-1].epsilons == report.totals.epsilons
    assert audit(tmp_path / "run", server_key=PIN).ok


@pytest.mark.parametrize("count", [0, 1, 16, 17, 200, 1501])
def test_of_no_run_more_than_sixteen_rounds_are_priced(count: int) -> None:
    priced = rounds._priced(count)
    assert len(priced) <= 16
    assert priced <= set(range(1, count + 1))
    assert (count in priced) == (count > 0)


def test_attention_that_is_none_is_refused_by_key(good: Path) -> None:
    raw = json.loads((good / "report.json").read_bytes())
    raw["samples"][0]["attention"]["weights"][0][0] = 0.9
    with pytest.raises(RunError, match=r"samples.0.attention: .*weights\[0\]"):
        parse_report(json.dumps(raw).encode())


@pytest.mark.parametrize("epsilon", [1e300, 1e-300, -1, None])
def test_a_cost_that_cannot_be_or_is_missing_is_refused_by_key(good: Path, epsilon: Any) -> None:
    raw = json.loads((good / "report.json").read_bytes())
    raw["rounds"][0]["epsilons"]["server"] = epsilon
    if epsilon is None:
        del raw["rounds"][0]["epsilons"]["server"]
    with pytest.raises(RunError, match=r"rounds.0.epsilons.*must (be|have)"):
        parse_report(json.dumps(raw).encode())


def test_every_chart_has_its_numbers_as_a_table_and_in_words(good: Path) -> None:
    report = read_report(good)
    epsilon, clients, quality = charts(report)
    assert epsilon.columns[2:] == ("Outsider", "Server", "Collusion", "Unmasked")
    assert [row[0] for row in epsilon.rows] == [row[0] for row in clients.rows] == list("1234")
    assert clients.rows[0] == ("1", "released", "4", "3", "1")
    assert clients.rows[1] == ("2", "aborted", "4", "–", "–")
    assert quality.rows == (("1", "2.270", ""), ("3", "2.200", "-0.070"))
    assert [key.label for key in epsilon.keys] == [
        "all four adversaries",
        "budget 8",
    ]
    page = render_html(report)
    for chart in (epsilon, clients, quality):
        assert chart.title in page
        assert chart.summary in page
        assert str(chart.drawing) in page
        for text in ("<title ", "<desc ", 'role="img"'):
            assert text in chart.drawing


def test_a_run_without_noise_has_no_curve_of_epsilon_and_a_seeded_one_says_so(
    tmp_path: Path,
) -> None:
    bare = config(unit="none", noise="none", epsilon_budget=None)
    titles = [each.title for each in charts(read_report(Run(tmp_path / "a", bare).write()))]
    assert titles == ["Clients, round by round", "Bits per byte on validation users"]
    seeded = config_from_dict({**config().model_dump(mode="json"), "seed": 1})
    run = Run(tmp_path / "b", seeded).write()
    assert charts(read_report(run))[0].title == "What the rounds would have cost with secret noise"
    assert "Epsilon, outsider</span><b>∞</b>" in (run / "report.html").read_text()


def test_numbers_that_no_run_has_are_drawn_or_left_out(good: Path) -> None:
    raw = json.loads((good / "report.json").read_bytes())
    for each in raw["rounds"]:
        each.update(number=10**9, contacted=10**9, survivors=10**9, dropouts=10**9)
        each["epsilons"] = dict.fromkeys(each["epsilons"], 1e9)
    raw["quality"]["validation"] = [{"round": 10**9, "bpb": 1e308}, {"round": 1, "bpb": -1e308}]
    raw["totals"]["budgets"] = {"outsider": 1e300}
    assert [each.title for each in charts(Report.model_validate(raw))] == [
        "Clients, round by round"
    ]
    raw["quality"]["validation"] = [{"round": 10**9, "bpb": 1.0}, {"round": 1, "bpb": 1.0}]
    raw["rounds"][0]["epsilons"] = dict.fromkeys(raw["rounds"][0]["epsilons"], 0.0)
    assert len(charts(Report.model_validate(raw))) == 3


def test_another_process_renders_the_same_bytes(good: Path) -> None:
    code = (
        "import sys, pathlib; from fedattn.report import read_report, render_html; "
        "sys.stdout.write(render_html(read_report(pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code, str(good)],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C"},
    )
    assert done.stdout == (good / "report.html").read_bytes()


def test_a_page_is_rendered_from_the_report_as_it_is_stored(tmp_path: Path) -> None:
    faults = [{"round": 2, "stage": "upload", "clients": 1}]  # (keys that are stored sorted)
    faulty = config_from_dict({**config().model_dump(mode="json"), "faults": faults})
    assert audit(Run(tmp_path / "run", faulty).write(), server_key=PIN).ok


def test_a_page_drawn_by_other_code_or_library_is_not_compared(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page_finding() -> tuple[bool, str]:
        found = next(f for f in audit(run, server_key=PIN).findings if f.check == "report page")
        return found.ok, found.detail

    assert page_finding() == (True, "rendered again, equal")
    for version in ("0.0.1", None):

        def other(name: str, version: str | None = version) -> str:
            if version is None:
                raise html.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(html.metadata, "version", other)
        ok, detail = page_finding()
        assert ok
        assert detail.startswith("not compared")
        assert audit(run, server_key=PIN).verdict == VERIFIED + "; report.html not compared"
        assert audit(run).verdict == UNPINNED + "; report.html not compared"


def test_the_chart_library_is_loaded_only_to_draw() -> None:
    code = "import fedattn.audit, sys; print(*[m for m in sys.modules if 'pygal' in m])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT, text=True
    )
    assert done.stdout.split() == []


def test_drawing_leaves_the_imports_of_others_alone(good: Path) -> None:
    before = list(sys.meta_path)
    render_html(read_report(good))
    assert sys.meta_path == before


def test_a_line_far_above_every_budget_ends_at_the_edge_and_is_told(good: Path) -> None:
    raw = json.loads((good / "report.json").read_bytes())
    for each, epsilon in zip(raw["rounds"], (20.0, 40.0, "infinity", "infinity"), strict=True):
        each["epsilons"]["unmasked"] = epsilon
    chart = charts(Report.model_validate(raw))[0]
    assert chart.summary.endswith("unmasked ∞, beyond the drawing.")
    assert re.findall(r"round \d: unmasked [\d.]+", chart.drawing) == [
        "round 0: unmasked 0.00",
        "round 1: unmasked 20.00",
    ]
    assert [row[-1] for row in chart.rows] == ["20.00", "40.00", "∞", "∞"]


def test_a_drawing_holds_no_script_style_link_or_long_number(good: Path) -> None:
    for chart in charts(read_report(good)):
        tags = set(re.findall(r"<(\w+)", chart.drawing))
        assert tags <= {"svg", "title", "desc", "g", "path", "circle", "rect", "text"}
        drawn = re.sub(r"<(title|desc)\b.*?</\1>", "", chart.drawing)
        assert not re.search(r"style=|href|xmlns|\d\.\d{3}", drawn)


@pytest.mark.parametrize("count", [9, 32, 2400])
def test_the_axis_of_rounds_names_them_whole_however_many_they_are(count: int) -> None:
    numbers = list(range(1, count + 1))
    drawn = bars("clients", "title", "summary", numbers, [("answered", "%s", [8] * count)])
    heights = [str(height) for height in (0, 2, 4, 6, 8)]
    named = [text for text in re.findall(r"<text[^>]*>([^<]+)</text>", drawn) if text != "round"]
    for height in heights:
        named.remove(height)
    assert named == [str(number) for number in numbers[:: -(-count // 10)]]
