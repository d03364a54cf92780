"""The two packaged corpora and what their owner sees of them."""

import io
import json

import pytest
from rich.console import Console

from fedattn.config import DataConfig
from fedattn.data import describe, load_dialogues, partition
from fedattn.data.chitchat import load_chitchat
from fedattn.data.packages import package_folder
from fedattn.data.plays import load_plays, parse_play
from fedattn.data.summary import inspect, quantile_table, share_table
from fedattn.errors import DataError


@pytest.fixture(scope="module")
def kept():
    return load_dialogues(DataConfig())


@pytest.fixture(scope="module")
def plays():
    return load_plays()


def test_chitchat_has_the_conversations_and_people_it_is_known_for():
    dialogues = load_chitchat()
    assert len(dialogues) == 7168
    assert len({person for item in dialogues for person in item.people}) == 1315


def test_chitchat_after_the_filters(kept):
    assert len(kept) == 3242
    assert [item.id for item in kept] == sorted(item.id for item in kept)
    parts = partition(kept, DataConfig())
    assert sum(map(len, parts.train)) == 2304
    assert (len(parts.validation), len(parts.test)) == (505, 433)
    assert all(parts.train)


def test_plays_are_mostly_speech(plays):
    speeches = [turn for scene in plays for turn in scene.turns]
    assert len({scene.id for scene in plays}) == len(plays) > 700
    assert len(speeches) > 30_000
    assert sum(len(turn.text.encode()) for turn in speeches) > 4_000_000
    print(f"plays: {len(plays)} scenes, {len(speeches)} speeches")


def test_plays_hold_no_licence_and_no_stage_directions(plays):
    for scene in plays:
        assert len(scene.turns) > 1
        for turn in scene.turns:
            assert "gutenberg" not in turn.text.lower()
            assert not set("[]{}_\n") & set(turn.text)
            assert turn.text == " ".join(turn.text.split())


def test_a_play_in_each_layout():
    start = "PERSONS.\n\nA KING, a king.\n\nACT I.\n\nSCENE I. A room.\n\nKING.\nAy.\n\nPAGE\nNo."
    pair = "\n\nKING\nLine {0},\n  and more.\n\nPAGE. Inline [Aside.] {0}."
    end = "\n\n[Exit\nPAGE.]\n\nStill he speaks.\n\nSCENE II.\n\nKING.\nAlone."
    (scene,) = parse_play("x", start + "".join(map(pair.format, range(60))) + end)
    assert [turn.speaker for turn in scene.turns[:4]] == ["KING", "PAGE", "KING", "PAGE"]
    assert scene.turns[2].text == "Line 0, and more."
    assert scene.turns[3].text == "Inline 0."
    assert scene.turns[-1].text == "Inline 59. Still he speaks."
    mixed = "Act I.\n\nHam.\nTo be.\n\n1 Clown.\nAlas!\n\nYorick here.\n\nAlb. and Corn.\nForbear!"
    (scene,) = parse_play("y", mixed)
    assert [(turn.speaker, turn.text) for turn in scene.turns] == [
        ("Ham", "To be."),
        ("1 Clown", "Alas! Yorick here."),
        ("Alb. and Corn", "Forbear!"),
    ]


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(DataError, match="package no_such is missing; run: pip install no-such"):
        package_folder("no_such", install="no-such")


def test_a_description_reads_no_private_record(tmp_path):
    config = DataConfig(source="jsonl", path=str(tmp_path / "none.jsonl"), thin={"ann": 0.5})
    said = describe(config)
    assert said.startswith("a JSONL file named by data.path: conversations of two speakers")
    assert "1 owners have lower rates" in said
    assert "ann" not in said
    assert describe(DataConfig()).startswith("chitchat-dataset 0.9")


def test_inspect_counts_a_file(tmp_path):
    path = tmp_path / "chats.jsonl"
    lines = [
        json.dumps(
            {
                "id": f"c{i}",
                "turns": [{"speaker": "ab"[t % 2] + str(i), "text": "é"} for t in range(4)],
            }
        )
        for i in range(10)
    ]
    path.write_text("\n".join([*lines, "[]", ""]))
    config = DataConfig(
        source="jsonl", path=str(path), clients=2, test_share=0.0, validation_share=0.0
    )
    with pytest.raises(DataError, match="line 11"):
        inspect(config)
    summary = inspect(config, skip_bad=True)
    assert (summary.read, summary.kept, summary.people) == (10, 10, 20)
    assert summary.skipped == {"wrong_type": 1}
    assert [share.name for share in summary.shares] == [
        "client 1",
        "client 2",
        "train",
        "validation",
        "test",
    ]
    train = summary.shares[2]
    assert (train.conversations, train.examples, train.bytes) == (10, 30, 80)
    assert summary.shares[3].conversations == summary.shares[4].conversations == 0
    assert summary.quantiles["turns per conversation"] == (4,) * 6
    assert summary.quantiles["bytes per reply"] == (2,) * 6
    console = Console(file=io.StringIO(), width=100)
    console.print(share_table(summary), quantile_table(summary))
    shown = console.file.getvalue()
    assert "10 of 10 conversations kept, 20 people" in shown
    assert "wrong_type: 1" in shown


def test_inspect_of_nothing_kept_has_no_quantiles(tmp_path):
    path = tmp_path / "chats.jsonl"
    turns = [{"speaker": who, "text": "x"} for who in "ab"]
    path.write_text(json.dumps({"id": "c", "turns": turns}))
    summary = inspect(DataConfig(source="jsonl", path=str(path)))
    assert (summary.read, summary.kept) == (1, 0)
    assert summary.quantiles["bytes per reply"] == ()
    quantile_table(summary)
