"""`fedattn attention` on a checkpoint and a run: prints, files, numbers, refusals."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.checkpoint import save_model
from fedattn.cli_attention import attention
from fedattn.errors import AttentionError, FedattnError, RunError
from fedattn.simulate import new_run_dir, simulate
from tests.federation import conversations, tiny, write

app = typer.Typer()
app.command()(attention)


def run(*argv):
    done = CliRunner().invoke(app, [str(each) for each in argv])
    if isinstance(done.exception, FedattnError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def checkpoint(generator, tmp_path):
    path = tmp_path / "some.safetensors"
    save_model(path, generator())
    return path


SAYS = ("--say", "hi <b>there</b>", "--say", "yes", "--say", "how are you?")


def test_it_prints_the_reply_and_what_it_looked_at(checkpoint):
    lines = run(checkpoint, *SAYS, "--max-tokens", 5).splitlines()
    assert lines[-1].startswith("most: ")
    assert "how are you?"[-11:] in lines[-2]
    assert "100%" in lines[-2]  # the window of 12 tokens holds no more than the last turn
    assert "2 turns before this" in lines[-3]


def test_html_png_and_json_are_written(checkpoint, tmp_path):
    html, png = tmp_path / "a.html", tmp_path / "a.png"
    out = run(checkpoint, *SAYS, "--html", html, "--png", png, "--rollout", "--json")
    stored = json.loads(out)
    seen = AttentionMap.from_json(stored["attention"])
    assert "".join(seen.reply).strip() == stored["reply"]
    assert "attention rollout" in html.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_layer_and_head_choose(checkpoint):
    maps = [run(checkpoint, *SAYS, "--json", *more) for more in ((), ("--head", 0), ("--layer", 0))]
    assert maps[0] == maps[2] != maps[1]  # it has one layer and two heads


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((), "either --say"),
        (("--say", "a", "--faithfulness"), "either --say"),
        (("--say", " "), "a turn is empty"),
        (("--say", "a", "--layer", "1"), "layer is 1"),
        (("--say", "a", "--head", "0", "--rollout"), "drop layer and head"),
        (("--faithfulness", "--replies", "all"), "must be real or own"),
        (("--faithfulness", "--rollout"), "drop the other options"),
        (("--say", "a", "--png", "/nowhere/at/all.png"), "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(checkpoint, argv, named):
    with pytest.raises(AttentionError, match=named):
        run(checkpoint, *argv)


def test_no_such_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such run"):
        run(tmp_path / "nowhere", "--say", "a")


def test_a_run_is_measured_on_its_own_validation_users(tmp_path):
    data = write(tmp_path / "data.jsonl", conversations())
    architecture = {"vocab_size": 260, "d_model": 8, "heads": 2, "context_tokens": 90}
    start = {"start": "random", "architecture": architecture, "trainable": "all"}
    config = tiny(data, train={"rounds": 1, "local_steps": 1}, model=start)
    simulate(config, new_run_dir(config, tmp_path / "run"))
    out = run(tmp_path / "run", "--faithfulness", "--examples", 12, "--json")
    found = json.loads(out)
    assert found["examples"] == 12
    assert [each["rule"] for each in found["comparisons"]] == ["mean", "rollout", "last", "longest"]
    assert out == run(tmp_path / "run", "--faithfulness", "--examples", 12, "--json")
    assert all(0 <= each["chosen_hurts_more"]["value"] <= 1 for each in found["comparisons"])
    table = run(tmp_path / "run", "--faithfulness", "--examples", 12)
    assert "12 real replies" in table
    with pytest.raises(AttentionError, match="--config"):
        run(tmp_path / "run", "--say", "a", "--config", "x.yaml")
