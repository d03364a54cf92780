"""An exported folder loads, says what was promised, and cannot be mistaken for another model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedattn
from fedattn import cli
from fedattn.config import Architecture
from fedattn.errors import RunError
from fedattn.export import export, model_card
from fedattn.found_model import UNKNOWN, find_model
from fedattn.released import Released, read_released, statement_of, vocabulary_of
from fedattn.report import read_report, show_epsilon
from fedattn.signing import fingerprint
from fedattn.tokens import SPECIALS, Tokenizer
from tests.run_builder import PRETENDS, Run, config, sampled, summed


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    export(find_model(finished_run), out)
    return out


def changed(folder, to, change):
    """A copy of `folder` with another config.json."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    raw = json.loads((to / "config.json").read_text())
    change(raw)
    (to / "config.json").write_text(json.dumps(raw))
    return to


def test_what_is_exported_loads_and_speaks_as_the_run_does(folder, finished_run):
    there, here = fedattn.load(folder), fedattn.load(finished_run)
    for turns in (["hi"], ["red cat", "blue", "what then?"]):
        assert there.reply(turns).ids == here.reply(turns).ids
    assert there.notes == here.notes
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "README.md",
    }  # fmt: skip


def test_config_json_names_model_vocabulary_and_promises(folder, finished_run):
    released, report = read_released(folder), read_report(finished_run)
    stored = (folder / "model.safetensors").read_bytes()
    assert released.file_sha256 == hashlib.sha256(stored).hexdigest() == report.model.file_sha256
    assert released.architecture == fedattn.load(folder).model.shape
    tokenizer = Tokenizer(released.vocabulary.size)
    assert released.vocabulary.specials == {
        name: getattr(tokenizer, name.strip("<>")) for name in SPECIALS
    }
    assert released.privacy is not None
    assert released.privacy.claims == report.claims
    assert released.privacy.final_sha256 == report.model.final_sha256
    signed = hashlib.sha256((finished_run / "report.json").read_bytes()).hexdigest()
    assert released.privacy.report_sha256 == signed
    # what only the run's owner needs to know stays behind
    assert "data.jsonl" not in (folder / "config.json").read_text()


def card_of(run):
    """The card of a run whose weights are made up, and its report."""
    report = read_report(run)
    released = Released(
        fedattn_version="0",
        name="a run",
        architecture=Architecture(),
        vocabulary=vocabulary_of(4096),
        file="model.safetensors",
        file_sha256="0" * 64,
        changes=[],
        privacy=statement_of(report, "1" * 64),
        notes=report.notes,
    )
    return model_card(released, report, parameters=12345, size=678), report


@pytest.mark.parametrize("made", [sampled(), sampled(hypothetical=PRETENDS), config(), summed()])
def test_the_card_says_of_every_row_what_it_counts_on(tmp_path, made):
    card, report = card_of(Run(tmp_path / "run", made).write())
    lines = [line for line in card.splitlines() if line.startswith("- Against ")]
    assert len(lines) == len(report.claims)
    for line, claim in zip(lines, report.claims, strict=True):
        assert line == f"- Against {claim.adversary}: {' '.join(claim.assumptions)}"
    assert "no reader of the ledger" in lines[0] or made.privacy.noise == "local"
    assert card.count("**HYPOTHETICAL") == (made.privacy.hypothetical is not None)


def test_a_label_that_a_report_leaves_out_is_said_all_the_same(finished_run, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    raw = json.loads((run / "report.json").read_bytes())
    (label,) = raw["notes"]
    assert label.startswith("NOT PRIVATE")
    (run / "report.json").write_text(json.dumps({**raw, "notes": ["all is well"]}))
    found = find_model(run)
    assert found.notes == (label, "all is well")
    export(found, tmp_path / "out")
    assert "**NOT PRIVATE" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_states_epsilon_for_every_adversary(tmp_path):
    card, report = card_of(Run(tmp_path / "run", config()).write())
    for claim in report.claims:
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {claim.adversary} |")]
        assert f"| {show_epsilon(claim.epsilon)} | {claim.delta:g} | conversation |" in row
    assert show_epsilon(report.claims[0].epsilon) not in ("0", "∞")
    assert fingerprint(bytes.fromhex(report.ledger.server_public_key)) in card  # what is pinned
    assert "12,345 parameters" in card
    assert "2.190 on 200 replies of held-out users; 2.310 before training" in card
    # what a model said stays text: indented, it is code to Markdown
    assert "    > <script>alert(1)</script>" in card.splitlines()


def test_a_card_begins_with_its_loud_notes_and_no_text_can_mark_it_up(folder):
    assert "**NOT PRIVATE" in (folder / "README.md").read_text().split("An attention-based")[0]
    released = read_released(folder)
    planted = "<b>x</b> [a](http://b) | c\n# d \x1b[2J"
    loud = released.model_copy(update={"notes": [planted], "name": planted})
    card = model_card(loud, None, parameters=1, size=1)
    assert r"**\<b\>x\</b\> \[a\](http://b) \| c↵\# d ␛\[2J**" in card.splitlines()
    assert card.splitlines()[0] == r"# \<b\>x\</b\> \[a\](http://b) \| c↵\# d ␛\[2J"


def test_a_model_without_a_report_is_exported_as_of_unknown_privacy(finished_run, tmp_path):
    export(find_model(finished_run / "model.safetensors"), tmp_path / "out")
    assert fedattn.load(tmp_path / "out").notes == (UNKNOWN,)
    assert read_released(tmp_path / "out").privacy is None
    assert "Nothing is known" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_overwrites_nothing_and_leaves_nothing_half_done(finished_run, folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="exists and is not overwritten"):
        export(find_model(finished_run), tmp_path / "out")
    with pytest.raises(RunError, match="was exported already"):
        export(find_model(folder), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(file_sha256="0" * 64), "is not the 0000000000000000"),
        (lambda raw: raw.update(file="no.safetensors"), "cannot be read"),
        (lambda raw: raw.update(file="../model.safetensors"), "file: String should match"),
        (lambda raw: raw.update(format="fedattn-released/9"), "not of format"),
        (lambda raw: raw.update(more=1), "more: Extra inputs"),
        (lambda raw: raw.update(name="a\n# b"), "name: String should match"),
        (lambda raw: raw.update(name="[a](b)"), "name: String should match"),
        (lambda raw: raw.update(name="a" * 201), "name: String should have at most 200"),
        (lambda raw: raw.pop("notes"), "notes: Field required"),
        (lambda raw: raw["architecture"].update(heads=1), "architecture is not that of"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder, tmp_path, change, message):
    with pytest.raises(RunError, match=message):
        fedattn.load(changed(folder, tmp_path / "changed", change))


def test_a_config_that_is_no_json_is_refused(folder, tmp_path):
    other = changed(folder, tmp_path / "changed", lambda raw: None)
    (other / "config.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        fedattn.load(other)


def test_the_command_writes_the_folder_and_warns(finished_run, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(cli.app, ["export", str(finished_run), "--out", str(out)])
    assert done.exit_code == 0, done.exception
    assert "NOT PRIVATE" in done.stderr
    assert f"fedattn chat {out}" in done.stdout
    assert fedattn.load(out).reply(["hi"]).ids
