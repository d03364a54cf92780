"""`fedattn data clean`: a new file of one's own, counts that add up, no text in what is said."""

import json
import stat

import pytest
from typer.testing import CliRunner

from fedattn.cli_data import data_app
from fedattn.data import load_partition
from fedattn.data.clean_file import CleanOptions, clean_file
from fedattn.data.jsonl import read_jsonl
from fedattn.data.summary import inspect
from fedattn.errors import ConfigError, DataError
from fedattn.records import training_records
from fedattn.tokens import Tokenizer
from tests.federation import conversations, tiny, write

runner = CliRunner()
GERMAN = "Mir geht es gut, ich war gestern mit meiner Schwester auf dem Markt, und du, sag mal?"
PLANTED = ["hunter2", "ann@example.org", "415-555-2671", "zanzibar"]


def chats():
    """Conversations with something for each rule."""

    def turns(*texts):
        return [{"speaker": "ab"[i % 2], "text": text} for i, text in enumerate(texts)]

    long = "hunter2 zanzibar and the others went to the old house again, then they sang"
    return [
        {"id": "1", "turns": turns(
            "hunter2, mail ann@example.org", "ok, 415-555-2671", "bye", "!!!")},
        {"id": "2", "turns": turns("Hunter2 mail <email>", "OK <phone>", "bye")},
        {"id": "3", "user": "p", "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": long}, {"role": "assistant", "content": long + " x"}]},
        {"id": "4", "turns": turns("!!!", "zanzibar")},
        {"id": "5", "messages": [
            {"role": "user", "content": long}, {"role": "assistant", "content": long + " y"}]},
        {"id": "6", "turns": turns("Wie geht es dir heute, mein Freund?", GERMAN)},
        {"id": "7", "turns": turns("hello you", "all is well with us " * 150)},
    ]  # fmt: skip


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.jsonl", chats())


def run(*arguments):
    return runner.invoke(data_app, ["clean", *map(str, arguments)])


def test_counts_add_up_and_the_output_is_a_good_file_of_one_s_own(source, tmp_path):
    out = tmp_path / "out.jsonl"
    result = run(source, "--out", out, "--english", "--max-bytes", 2000, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["dropped"] == {
        "english": 1, "exact_duplicate": 1, "near_duplicate": 1, "too_few_turns": 1, "too_long": 1,
    }  # fmt: skip
    assert said["read"] == 7 == said["kept"] + sum(said["dropped"].values())
    gone = sum(count for name, count in said["turns"].items() if name != "tidied")
    assert said["turns_read"] == said["turns_kept"] + gone
    assert said["turns"]["symbols"] == 2
    assert said["masked"] == {"email": 1, "phone": 1}
    assert said["notes"] == {"system_message": 1}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    kept = read_jsonl(out).accepted(skip_bad=False)
    assert [item.id for item in kept] == ["1", "3"]
    assert [turn.text for turn in kept[0].turns] == [
        "hunter2, mail <email>", "ok, <phone>", "bye",
    ]  # fmt: skip
    assert kept[1].people == ("p",)


def test_cleaning_the_output_again_changes_nothing(source, tmp_path):
    once, again = tmp_path / "once.jsonl", tmp_path / "again.jsonl"
    clean_file(source, once, CleanOptions())
    report = clean_file(once, again, CleanOptions())
    assert once.read_bytes() == again.read_bytes()
    assert report.read == report.kept
    assert (report.dropped, report.turns, report.masked) == ({}, {}, {})


def test_ids_and_people_are_what_they_were(source, tmp_path):
    clean_file(source, tmp_path / "out.jsonl", CleanOptions(is_deduplicated=False))
    before = {item.id: item.people for item in read_jsonl(source).dialogues}
    after = {item.id: item.people for item in read_jsonl(tmp_path / "out.jsonl").dialogues}
    assert len(after) == 6
    assert after.items() <= before.items()


def test_an_id_made_from_the_messages_stays_when_the_messages_change(tmp_path):
    messages = [
        {"role": "user", "content": "mail a@b.com"},
        {"role": "assistant", "content": "hi you"},
    ]
    source = write(tmp_path / "in.jsonl", [{"messages": messages}])
    clean_file(source, tmp_path / "out.jsonl", CleanOptions())
    (before,), (after,) = (read_jsonl(p).dialogues for p in (source, tmp_path / "out.jsonl"))
    assert (after.id, after.people) == (before.id, before.people)
    assert after.turns != before.turns


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--no-junk", "--no-mask-pii")])
def test_nothing_that_is_said_is_said(source, tmp_path, arguments):
    result = run(source, "--out", tmp_path / "out.jsonl", *arguments)
    assert result.exit_code == 0, result.output
    assert not [word for word in PLANTED if word in result.output]


def test_an_existing_file_is_never_overwritten_not_even_through_a_link(source, tmp_path):
    out = tmp_path / "out.jsonl"
    out.symlink_to(tmp_path / "elsewhere")
    for path in (source, out):
        before = source.read_bytes()
        with pytest.raises(DataError, match="exists; choose another --out"):
            clean_file(source, path, CleanOptions())
        assert source.read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_bad_line_is_named_by_number_and_nothing_is_written(tmp_path):
    source = write(tmp_path / "in.jsonl", chats())
    with source.open("a") as file:
        file.write('{"id": "hunter2", "turns": "zanzibar"}\n')
    out = tmp_path / "out.jsonl"
    failed = run(source, "--out", out)
    assert isinstance(failed.exception, DataError)
    assert "line 8, turns" in str(failed.exception)
    assert not [word for word in PLANTED if word in str(failed.exception)]
    assert not out.exists()
    assert run(source, "--out", out, "--skip-bad").exit_code == 0
    assert out.exists()


def test_a_conversation_whose_cleaning_fails_is_left_out_and_counted(source, tmp_path, monkeypatch):
    import fedattn.data.clean_file as module

    true_clean = module.clean

    def fail(dialogue, *rest, **named):
        if dialogue.id == "1":
            raise ValueError("hunter2")
        return true_clean(dialogue, *rest, **named)

    monkeypatch.setattr(module, "clean", fail)
    report = clean_file(source, tmp_path / "out.jsonl", CleanOptions(is_deduplicated=False))
    assert report.dropped["failed"] == 1
    gone = sum(count for name, count in report.turns.items() if name != "tidied")
    assert report.turns_read == report.turns_kept + gone


def test_when_nothing_is_left_nothing_is_written(tmp_path):
    source = write(tmp_path / "in.jsonl", chats()[3:4])
    with pytest.raises(DataError, match="no conversation is left"):
        clean_file(source, tmp_path / "out.jsonl", CleanOptions())
    assert not (tmp_path / "out.jsonl").exists()


def test_a_remedy_is_an_option_of_this_command(source, tmp_path):
    out = tmp_path / "out.jsonl"
    assert str(run(source, "--out", out, "--region", "XX").exception).startswith("--region: XX")
    assert "check its path" in str(run(tmp_path / "none", "--out", out).exception)
    source.write_text("no JSON\n")
    assert "give --skip-bad to leave" in str(run(source, "--out", out).exception)


@pytest.mark.parametrize(
    "arguments", [("--region", "XX"), ("--region", "de"), ("--near", "0"), ("--near", "1.5")]
)
def test_what_is_out_of_bounds_is_refused(source, tmp_path, arguments):
    result = run(source, "--out", tmp_path / "out.jsonl", *arguments)
    assert isinstance(result.exception, DataError | ConfigError)
    assert not (tmp_path / "out.jsonl").exists()


def test_the_region_says_whose_national_phones_are_masked(tmp_path):
    turns = [
        {"speaker": "a", "text": "ruf an: 030 901820"},
        {"speaker": "b", "text": "ok, thank you"},
    ]
    source = write(tmp_path / "in.jsonl", [{"id": "1", "turns": turns}])
    for region, masked in (("US", {}), ("DE", {"phone": 1})):
        result = run(source, "--out", tmp_path / region, "--region", region, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["masked"] == masked


def test_a_folder_that_is_not_there_is_refused(source, tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        clean_file(source, tmp_path / "nowhere" / "out.jsonl", CleanOptions())


def test_inspect_counts_what_trains_after_cleaning(tmp_path):
    items = conversations()
    for item in items:
        item["turns"][2]["text"] += " ann@example.org"
    path = tmp_path / "config.yaml"
    path.write_text(tiny(write(tmp_path / "in.jsonl", items)).canonical_json())
    plain, cleaned = (
        json.loads(runner.invoke(data_app, ["inspect", str(path), "--json", *more]).stdout)
        for more in ((), ("--set", "data.clean.mask_pii=true"))
    )
    trains, held_out = slice(0, 5), slice(5, 7)
    assert plain["cleaned"] == {}
    assert cleaned["cleaned"]["email"] == cleaned["shares"][4]["conversations"]
    assert cleaned["shares"][trains] != plain["shares"][trains]
    assert cleaned["shares"][held_out] == plain["shares"][held_out]


def test_inspect_leaves_out_what_cannot_be_cleaned_as_training_does(tmp_path, monkeypatch):
    import fedattn.data.clean as module

    config = tiny(
        write(tmp_path / "in.jsonl", conversations()), data={"clean": {"mask_pii": True}}
    ).data
    whole = inspect(config)
    broken = next(each for part in load_partition(config).train for each in part).id
    true_clean = module.clean

    def fail(dialogue, *rest, **named):
        if dialogue.id == broken:
            raise ValueError("hunter2")
        return true_clean(dialogue, *rest, **named)

    monkeypatch.setattr(module, "clean", fail)
    seen = inspect(config)
    assert seen.cleaned["left_out"] == whole.cleaned.get("left_out", 0) + 1
    tokenizer = Tokenizer(257)
    trains = [training_records(part, tokenizer, config) for part in load_partition(config).train]
    assert [share.conversations for share in seen.shares[: config.clients]] == list(
        map(len, trains)
    )
