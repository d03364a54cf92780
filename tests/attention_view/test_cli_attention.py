"""`fedattn attention` on a checkpoint and a run: prints, files, numbers, refusals."""

from __future__ import annotations

import json
import shutil
import stat

import pytest
import typer
from typer.testing import CliRunner

from fedattn.attention_view import faithfulness as module
from fedattn.attention_view.attention_map import AttentionMap
from fedattn.checkpoint import save_model
from fedattn.cli_attention import attention
from fedattn.data import load_partition
from fedattn.errors import AttentionError, FedattnError, RunError
from fedattn.export import export
from fedattn.found_model import UNKNOWN, find_model
from fedattn.simulate import new_run_dir, simulate
from tests.federation import tiny, write

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
        (("--faithfulness",), "give --config, the one that the model was trained with"),
        (("--say", "a", "--examples", "3"), "of --faithfulness alone"),
        (("--say", "a", "--replies", "real"), "of --faithfulness alone"),
        (("--say", "a", "--seed", "0"), "of --faithfulness alone"),
        (("--say", "a", "--config", "x.yaml"), "of --faithfulness alone"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(checkpoint, argv, named):
    with pytest.raises(AttentionError, match=named):
        run(checkpoint, *argv)


def test_no_such_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such run"):
        run(tmp_path / "nowhere", "--say", "a")


def test_an_existing_file_is_refused_before_a_model_is_looked_for(tmp_path):
    taken, free = tmp_path / "taken", tmp_path / "free"
    taken.write_text("precious")
    for option, other in (("--html", "--png"), ("--png", "--html")):
        with pytest.raises(RunError, match=f"exists and is not overwritten; .* another {option}"):
            run(tmp_path / "no-model", "--say", "a", option, taken, other, free)
        with pytest.raises(RunError, match="no such directory"):
            run(tmp_path / "no-model", "--say", "a", option, tmp_path / "no" / "file")
    assert taken.read_text() == "precious"
    assert not free.exists()


def test_what_is_written_is_its_owners_alone_and_whole(checkpoint, tmp_path):
    html, part = tmp_path / "a.html", tmp_path / "a.html.part"
    part.write_text("precious")
    run(checkpoint, *SAYS, "--html", html, "--png", tmp_path / "a.png")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.html", "a.png")] == [
        0o600, 0o600,
    ]  # fmt: skip
    assert part.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 4


def test_whatever_chat_can_load_can_be_looked_into(checkpoint, finished_run, tmp_path):
    assert UNKNOWN in run(checkpoint, *SAYS)
    assert json.loads(run(checkpoint, *SAYS, "--json"))["notes"] == [UNKNOWN]
    assert json.loads(run("public", *SAYS, "--max-tokens", 2, "--json"))["notes"] == []
    export(find_model(finished_run), tmp_path / "exported")
    shown = [run(where, *SAYS, "--json") for where in (finished_run, tmp_path / "exported")]
    assert shown[0] == shown[1]


def test_a_model_file_that_is_not_the_reports_is_refused(finished_run, tmp_path, generator):
    changed = tmp_path / "run"
    shutil.copytree(finished_run, changed)
    save_model(changed / "model.safetensors", generator())
    with pytest.raises(RunError, match=r"sha256 .* is not the"):
        run(changed, "--say", "a")


def test_nothing_in_a_note_controls_the_terminal(finished_run, tmp_path):
    planted = tmp_path / "exported"
    export(find_model(finished_run), planted)
    stored = json.loads((planted / "config.json").read_text())
    stored["notes"] = ["[bold]NOT[/] \x1b[2J\u202ePRIVATE\n"]
    (planted / "config.json").write_text(json.dumps(stored))
    shown = run(planted, "--say", "a")
    assert "[bold]NOT[/] ␛[2J\N{REPLACEMENT CHARACTER}PRIVATE↵" in shown
    assert not set(shown) & set("\x1b\u202e")


SALT = "not the default"


def told_apart(path):
    """Conversations of which every turn names its own; the last reply is long."""
    made = []
    for number in range(120):
        people = [f"user{number % 40}", f"user{40 + number * 7 % 40}"]
        texts = [f"{number}.{turn}" for turn in range(5)] + [f"{number}." + "abcdefgh ijklmno" * 4]
        turns = [{"speaker": people[turn % 2], "text": text} for turn, text in enumerate(texts)]
        made.append({"id": f"c{number}", "turns": turns})
    return write(path, made)


@pytest.fixture(scope="module")
def salted(tmp_path_factory):
    """A run over conversations that are told apart, split by a salt of its own, and its config."""
    folder = tmp_path_factory.mktemp("salted")
    architecture = {"vocab_size": 260, "d_model": 8, "heads": 2, "context_tokens": 90}
    config = tiny(
        told_apart(folder / "data.jsonl"),
        data={"salt": SALT, "validation_share": 0.2, "max_reply_bytes": 30},
        train={"rounds": 1, "local_steps": 1},
        model={"start": "random", "architecture": architecture, "trainable": "all"},
    )
    simulate(config, new_run_dir(config, folder / "run"))
    (folder / "config.yaml").write_text(config.canonical_json())
    export(find_model(folder / "run"), folder / "exported")
    return folder, config.data


@pytest.fixture
def measured(monkeypatch):
    """Conversations and sizes of the replies that faithfulness is measured on."""
    seen = []

    def recording(model, tokenizer, pairs, **options):
        for pair in pairs:
            text = tokenizer.decode(pair.reply)
            seen.append((int(text.split(".")[0]), len(text)))
            context = tokenizer.decode(pair.context)
            assert f"{seen[-1][0]}." in context  # of the same conversation
        return real(model, tokenizer, pairs, **options)

    real = module.faithfulness
    monkeypatch.setattr(module, "faithfulness", recording)
    return seen


def split(data, salt):
    """Numbers of the conversations that train, and those of validation users."""
    part = load_partition(data.model_copy(update={"salt": salt}))
    train = {int(each.id[1:]) for silo in part.train for each in silo}
    return train, {int(each.id[1:]) for each in part.validation}


def test_faithfulness_is_measured_on_people_who_did_not_train(salted, measured):
    folder, data = salted
    train, validation = split(data, SALT)
    assert len(validation) >= 10
    assert split(data, "test")[1] & train  # another salt would hold out people who trained
    config = ("--config", folder / "config.yaml")
    for where in (
        (folder / "run",),
        (folder / "exported", *config),
        (folder / "run" / "model.safetensors", *config),
    ):
        measured.clear()
        run(*where, "--faithfulness", "--examples", 500, "--json")
        chosen = {number for number, _ in measured}
        assert chosen == validation
        assert not chosen & train
        # held-out replies count at all lengths, whatever training leaves out
        assert max(size for _, size in measured) > data.max_reply_bytes


def test_another_split_than_a_model_was_trained_with_is_refused(salted, tmp_path):
    folder, _ = salted
    other = tmp_path / "other.yaml"
    other.write_text((folder / "config.yaml").read_text().replace(SALT, "another"))
    with pytest.raises(AttentionError, match="another split"):
        run(folder / "exported", "--faithfulness", "--config", other)
    with pytest.raises(AttentionError, match="give --config"):
        run(folder / "exported", "--faithfulness")
    with pytest.raises(AttentionError, match="a run has its own"):
        run(folder / "run", "--faithfulness", "--config", folder / "config.yaml")


def test_faithfulness_of_a_run_in_numbers_and_as_a_table(salted):
    where = salted[0] / "run"
    out = run(where, "--faithfulness", "--examples", 12, "--json")
    found = json.loads(out)
    assert found["examples"] == 12
    assert [each["rule"] for each in found["comparisons"]] == ["mean", "rollout", "last", "longest"]
    assert out == run(where, "--faithfulness", "--examples", 12, "--json")
    other = json.loads(run(where, "--faithfulness", "--examples", 12, "--seed", 1, "--json"))
    for first, second in zip(found["comparisons"], other["comparisons"], strict=True):
        assert first["difference"]["value"] == second["difference"]["value"]
        assert first["difference"] != second["difference"]  # the seed is the bootstrap's
    assert "12 real replies" in run(where, "--faithfulness", "--examples", 12)
    own = run(where, "--faithfulness", "--examples", 3, "--replies", "own", "--max-tokens", 2)
    assert "3 replies of the model's own" in own
