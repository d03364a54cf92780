"""A server that signs what no run has: the audit finds it, and neither crashes nor obeys it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedattn
from fedattn import cli
from fedattn.audit import VERIFIED, audit, audit_table
from fedattn.errors import LedgerError, RunError
from fedattn.report import (
    PURPOSE,
    canonical_signature,
    html,
    page_sha256,
    parse_report,
    read_report,
    render_html,
)
from fedattn.report.shape import MOST_CELLS
from tests.planted import attention, looking
from tests.run_builder import PIN, SERVER, Run, config, failed, resign_report

ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\x9b31m\r\nverified"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(tmp_path_factory.mktemp("hostile") / "run", report=looking).write()


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def sign(run: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Change report.json and sign it whatever it says; the page stays."""
    raw = json.loads((run / "report.json").read_bytes())
    change(raw)
    stored = (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()
    (run / "report.json").write_bytes(stored)
    public, signature = SERVER.public_bytes.hex(), SERVER.sign(PURPOSE, stored).hex()
    signed = canonical_signature({"public_key": public, "signature": signature})
    (run / "report.sig").write_bytes(signed)
    return stored


def shown(run: Path) -> str:
    out = StringIO()
    Console(file=out, width=150).print(audit_table(audit(run)))
    return out.getvalue()


UNPRINTABLE = ("\x1b", "\x07", "\x9b", "\u202e", "\r")


def test_a_hostile_key_reaches_no_terminal(run: Path) -> None:
    stored = sign(run, lambda raw: raw.update({ESCAPES: 1}))
    with pytest.raises(RunError) as caught:
        parse_report(stored)
    for text in (str(caught.value), shown(run)):
        assert not any(sign in text for sign in UNPRINTABLE)
    assert "\n" not in str(caught.value)


def test_a_hostile_name_in_the_ledger_is_shown_as_text(tmp_path: Path) -> None:
    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "config": {**body["config"], ESCAPES: 1}} if kind == "open" else body

    path = Run(tmp_path / "run", body=forge).write(report=False)
    (path / "report.json").write_text("{}")
    assert not any(sign in shown(path) for sign in UNPRINTABLE)
    holder = Run(tmp_path / "held", held_by="the notary\u202e\x9b31m").write()
    assert "the notary" in shown(holder)
    assert not any(sign in shown(holder) for sign in UNPRINTABLE)


def test_an_error_of_a_command_keeps_its_lines_and_obeys_nobody(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fedattn", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        text = capsys.readouterr().err
        assert not any(sign in text for sign in UNPRINTABLE)
        return text

    ledger = run / "ledger.jsonl"
    key = json.dumps(ESCAPES)
    ledger.write_text(ledger.read_text().replace('"body":{', f'"body":{{{key}:1,', 1))
    assert "LedgerError" in told("audit", str(run))
    written = tmp_path / "config.yaml"
    written.write_text(json.dumps({**config().model_dump(mode="json"), "a\x1b[2J": 1, "b": 2}))
    lines = told("plan", str(written)).splitlines()
    assert len(lines) > 2, "one line a problem"


IMPOSSIBLE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a budget of nothing": lambda raw: raw["totals"].update(budgets={"outsider": 0.0}),
    "a round beyond floats": lambda raw: raw["quality"]["validation"][1].update(round=10**400),
    "a norm in words": lambda raw: raw["config"]["privacy"].update(clip_norm="x"),
    "a rate in words": lambda raw: raw["config"]["privacy"].update(client_rate="x"),
    "half a character": lambda raw: raw["samples"][0].update(reply="\ud800"),
    "half a character in the config": lambda raw: raw["config"].update(name="\udfff"),
    "no claims": lambda raw: raw.update(claims=[]),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_report_with_a_value_that_no_run_has_is_a_finding_and_no_page(
    run: Path, what: str
) -> None:
    stored = sign(run, IMPOSSIBLE[what])
    result = audit(run, server_key=PIN)
    assert "report page" in failed(result)
    assert "report signature" not in failed(result)
    with pytest.raises(RunError):
        render_html(parse_report(stored))


def test_a_ledger_with_a_number_beyond_floats_is_refused(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    huge = f'"noise_multiplier":{10**400}'
    ledger.write_text(ledger.read_text().replace('"noise_multiplier":1.0,"s', f'{huge},"s', 1))
    assert huge in ledger.read_text()
    with pytest.raises(LedgerError):
        audit(run)


EXTRA = "Certified by the regulator: none of the above matters."


@pytest.mark.parametrize(
    ("where", "check"),
    [
        ("assumptions", "assumptions and caveats"),
        ("caveats", "assumptions and caveats"),
        ("notes", "assumptions and caveats"),
        ("claims", "claims"),
    ],
)
@pytest.mark.parametrize("how", ["added", "repeated", "reversed"])
def test_a_sentence_that_follows_from_nothing_is_a_finding(
    run: Path, where: str, check: str, how: str
) -> None:
    def change(raw: dict[str, Any]) -> None:
        lines = raw["claims"][1]["assumptions"] if where == "claims" else raw[where]
        if how == "reversed" and len(lines) > 1:
            lines.reverse()
        else:
            lines.append(lines[0] if how == "repeated" and lines else EXTRA)

    resign_report(run, SERVER, change)
    assert failed(audit(run, server_key=PIN)) == {check}


def test_no_other_protocol_has_a_name(run: Path) -> None:
    stored = sign(run, lambda raw: raw["quality"].update(protocol="ISO 27001 certified"))
    with pytest.raises(RunError, match=r"quality\.protocol"):
        parse_report(stored)


CONTEXT = ("", "hi", ",", " how", " are", " you", "?")
OTHER = {
    "another reply": attention(CONTEXT, reply=("i", " am", " safe")),
    "another context": attention((*CONTEXT[:-1], "!"), reply=("i", " am", " fine")),
    "another number of turns": attention(("", "so"), CONTEXT, reply=("i", " am", " fine")),
}


@pytest.mark.parametrize("what", OTHER)
def test_attention_of_something_else_than_its_sample_is_refused(run: Path, what: str) -> None:
    stored = sign(run, lambda raw: raw["samples"][0].update(attention=OTHER[what]))
    with pytest.raises(RunError, match=r"samples\.0: .*attention: is of another"):
        parse_report(stored)


def test_attention_that_no_page_can_show_is_refused(run: Path) -> None:
    size = MOST_CELLS // 3 + 1
    vast = {
        "context": ["hi, how are you?", *[""] * (size - 1)],
        "turns": [0] * size,
        "reply": ["i", " am", " fine"],
        "weights": [[1.0, *[0.0] * (size - 1)]] * 3,
    }
    stored = sign(run, lambda raw: raw["samples"][0].update(attention=vast))
    with pytest.raises(RunError, match=rf"attention\.weights: has {3 * size} numbers"):
        parse_report(stored)


def test_a_page_that_is_not_compared_is_said_in_the_verdict(run: Path) -> None:
    (run / "report.html").write_text("all is private")
    sign(run, lambda raw: raw.update(page_sha256="0" * 64))
    result = audit(run, server_key=PIN)
    assert result.ok
    assert result.verdict == f"{VERIFIED}; report.html not compared"


def test_the_code_that_renders_a_page_is_all_in_its_hash(good: Path) -> None:
    folder, used = Path(fedattn.__file__).parent, set()

    def note(frame: Any, kind: str, _: object) -> None:
        if kind == "call" and Path(frame.f_code.co_filename).is_relative_to(folder):
            used.add(Path(frame.f_code.co_filename).relative_to(folder).as_posix())

    report = read_report(good)
    sys.setprofile(note)
    try:
        render_html(report)
    finally:
        sys.setprofile(None)
    assert {"report/html.py", "privacy/claims.py", "signing.py", "printable.py"} <= used
    assert used <= set(html._RENDERED_BY)
    # these are constants' alone
    assert {"privacy/masks.py", "privacy/sentences.py"} <= set(html._RENDERED_BY)


@pytest.mark.parametrize("library", ["jinja2", "pygal"])
def test_another_version_of_a_library_that_renders_is_another_page(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, real = page_sha256(), metadata.version
    monkeypatch.setattr(
        html.metadata, "version", lambda name: "0.0.1" if name == library else real(name)
    )
    assert page_sha256() != ours


@pytest.mark.parametrize(
    "name", ["ledger.jsonl", "report.json", "report.sig", "report.html", "model.safetensors"]
)
def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(run: Path, name: str) -> None:
    """In processes of their own: who opened the pipe would wait for a writer, until killed."""
    (run / name).unlink()
    os.mkfifo(run / name)
    use = {"audit": "fedattn.audit", "find_model": "fedattn.found_model"}
    for function, module in use.items():
        if function == "find_model" and name not in ("report.json", "model.safetensors"):
            continue
        code = (
            f"from pathlib import Path; from {module} import {function}; "
            f"from fedattn.errors import FedattnError\n"
            f"try: print(getattr({function}(Path({str(run)!r})), 'ok', 'found'))\n"
            f"except FedattnError as error: print('refused', error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stdout.startswith(("False", "refused")), done
