"""A report says the same to machines and people, and never lets text become markup."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from fedattn.errors import RunError
from fedattn.ledger import read_ledger
from fedattn.report import (
    PURPOSE,
    build_report,
    parse_report,
    read_report,
    render_html,
    show_epsilon,
    write_report,
)
from fedattn.signing import SigningKey, verify
from tests.run_builder import CROWD, PRETENDS, SERVER, Run, config, sampled, summed

CROWDED = sampled()


def five(devices: list[SigningKey], number: int) -> list[SigningKey]:
    return devices[:5]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(tmp_path_factory.mktemp("report") / "run").write()


def test_what_is_written_is_read_and_signed(run: Path) -> None:
    stored = (run / "report.json").read_bytes()
    report = read_report(run)
    assert report.to_bytes() == stored
    raw = json.loads((run / "report.sig").read_bytes())
    assert raw["public_key"] == SERVER.public_bytes.hex()
    assert verify(SERVER.public_bytes, PURPOSE, stored, bytes.fromhex(raw["signature"]))


def test_the_keys_of_a_report_are_fixed(run: Path) -> None:
    assert sorted(json.loads((run / "report.json").read_bytes())) == [
        "accountants",
        "adjacency",
        "assumptions",
        "authority_held_by",
        "caveats",
        "claims",
        "config",
        "config_sha256",
        "created_at",
        "data_set",
        "fedattn_version",
        "format",
        "hypothetical",
        "ledger",
        "model",
        "notes",
        "outcome",
        "page_sha256",
        "quality",
        "resumes",
        "rounds",
        "samples",
        "secure_aggregation",
        "totals",
    ]


def test_a_report_is_never_overwritten(run: Path) -> None:
    with pytest.raises(RunError, match="never overwritten"):
        write_report(run, read_report(run), SERVER)


def test_infinity_is_a_word_and_comes_back(tmp_path: Path) -> None:
    bare = config(unit="none", noise="none", epsilon_budget=None)
    run = Run(tmp_path / "run", config=bare).write()
    raw = json.loads((run / "report.json").read_bytes())
    assert raw["totals"]["epsilon"] == raw["claims"][0]["epsilon"] == "infinity"
    assert read_report(run).totals.epsilon == math.inf
    assert "nothing is protected" in (run / "report.html").read_text()
    assert "∞" in (run / "report.html").read_text()


def test_the_headline_is_the_outsiders_and_every_row_has_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config=summed()).write()
    totals, page = read_report(run).totals, (run / "report.html").read_text()
    rows = [totals.epsilons[row] for row in ("outsider", "server", "collusion", "unmasked")]
    assert totals.epsilon == rows[0] < rows[1] <= rows[2] < rows[3]
    assert totals.budgets == {"outsider": 8.0, "server": 8.0, "collusion": 8.0}
    places = [page.index(f"</span>{show_epsilon(value)}") for value in rows]
    assert places == sorted(places)
    assert places[-1] < page.index('class="tiles"')  # the table of adversaries comes first
    assert "Renyi, upper bound" in page


def test_a_server_that_adds_the_noise_is_promised_nothing_about(tmp_path: Path) -> None:
    trusting = summed(noise="server", epsilon_budget=8.0)
    raw = json.loads((Run(tmp_path / "run", config=trusting).write() / "report.json").read_bytes())
    assert raw["totals"]["epsilon"] < 8
    assert [claim["epsilon"] for claim in raw["claims"][1:]] == ["infinity"] * 3


def test_a_hypothetical_run_is_titled_so_with_its_real_epsilon_beside(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config=sampled(hypothetical=PRETENDS)).write()
    report, page = read_report(run), (run / "report.html").read_text()
    assert report.hypothetical is not None
    assert report.hypothetical.epsilons["outsider"] < 20 < report.totals.epsilon == math.inf
    assert report.notes[0].startswith("HYPOTHETICAL: noise as if 500 of 10000 clients")
    assert page.index("HYPOTHETICAL") < page.index("<h1>")  # the title
    assert "<th>Real epsilon</th><th>Hypothetical epsilon</th>" in page
    assert show_epsilon(report.hypothetical.epsilons["outsider"]) in page
    for claim in report.hypothetical.claims:
        assert claim.assumptions[0].startswith("HYPOTHETICAL: had 500 of 10000 clients")
    assert read_report(Run(tmp_path / "real", config=sampled()).write()).hypothetical is None


def test_a_skipped_round_is_counted_and_costs_nothing(tmp_path: Path) -> None:
    def cohort(devices: list[SigningKey], number: int) -> list[SigningKey]:
        return [] if number == 3 else devices[:5]

    whole = read_report(Run(tmp_path / "whole", CROWDED, devices=CROWD, cohort=five).write())
    less = read_report(Run(tmp_path / "less", CROWDED, devices=CROWD, cohort=cohort).write())
    assert (less.totals.rounds_skipped, less.totals.rounds_intended) == (1, 3)
    assert less.totals.epsilon < whole.totals.epsilon


def test_the_terminal_shows_all_rows_and_the_word_hypothetical(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from fedattn.progress import privacy_table

    def shown(run: Path) -> str:
        out = StringIO()
        Console(file=out, width=100).print(privacy_table(read_report(run)))
        return out.getvalue()

    honest = shown(Run(tmp_path / "run", config=summed()).write())
    places = [honest.index(row) for row in ("outsider", "server", "collusion", "unmasked")]
    assert places == sorted(places)
    assert "HYPOTHETICAL" not in honest
    pretended = shown(Run(tmp_path / "hyp", config=sampled(hypothetical=PRETENDS)).write())
    assert "real epsilon" in pretended
    assert "HYPOTHETICAL epsilon" in pretended
    assert "∞" in pretended


def test_markup_in_a_sample_stays_text(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "hi &lt;b&gt;there&lt;/b&gt;" in page


def test_the_page_needs_no_network_and_no_script(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert not re.search(r"https?://|//cdn|<link|<script|<img|@import|url\(|\bon\w+=", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert 'name="viewport"' in page


def test_every_claim_assumption_and_caveat_is_on_the_page(run: Path) -> None:
    import html

    report, page = read_report(run), html.unescape((run / "report.html").read_text())
    sentences = [*report.assumptions, *report.caveats, *report.notes]
    for line in (*sentences, *(claim.adversary for claim in report.claims)):
        assert line in page


def test_missing_quality_still_makes_a_page(run: Path) -> None:
    entries = read_ledger(run / "ledger.jsonl")
    report = build_report(entries, quality={}, model_file="m", model_file_sha256="0" * 64)
    assert "– → –" in render_html(report)


def test_a_report_needs_a_closed_ledger_and_the_right_parts(run: Path) -> None:
    entries = read_ledger(run / "ledger.jsonl")
    with pytest.raises(RunError, match="close the ledger"):
        build_report(entries[:-1], quality={}, model_file="m", model_file_sha256="0" * 64)
    with pytest.raises(RunError, match="loss"):
        build_report(entries, quality={"loss": 1}, model_file="m", model_file_sha256="0" * 64)
    with pytest.raises(RunError, match="file"):
        build_report(entries, quality={}, model_file="../m", model_file_sha256="0" * 64)


def test_bad_and_newer_reports_are_told_apart(run: Path, tmp_path: Path) -> None:
    stored = (run / "report.json").read_bytes()
    with pytest.raises(RunError, match="not valid JSON"):
        parse_report(stored[:-5])
    with pytest.raises(RunError, match="newer format"):
        parse_report(stored.replace(b"report/5", b"report/6"))
    with pytest.raises(RunError, match="format"):
        parse_report(stored.replace(b"fedattn-report/5", b"someone-else/1"))
    with pytest.raises(RunError, match="outcome"):
        parse_report(stored.replace(b'"outcome": "completed"', b'"outcome": "great"'))
    with pytest.raises(RunError, match="epsilon"):
        parse_report(re.sub(rb'"epsilon": [\d.]+', b'"epsilon": NaN', stored))
    with pytest.raises(RunError, match="not a run"):
        read_report(tmp_path)
    (tmp_path / "ledger.jsonl").write_bytes(b"")
    with pytest.raises(RunError, match="no report"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("value", "shown"), [(4.6994, "4.70"), (4.701, "4.71"), (8.0, "8.00"), (0.00012, "0.000120")]
)
def test_epsilon_is_rounded_up(value: float, shown: str) -> None:
    assert show_epsilon(value) == shown


def test_a_config_that_the_page_cannot_show_is_an_error_by_name(run: Path) -> None:
    report = read_report(run)
    del report.config["privacy"]["noise_multiplier"]
    with pytest.raises(RunError, match="noise_multiplier"):
        render_html(report)
