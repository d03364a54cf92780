"""`fedattn generate`: every schema, every refusal by its place, and each line on its own."""

from __future__ import annotations

import json
import os
import stat

import pytest
from typer.testing import CliRunner

from fedattn import cli, cli_model
from fedattn.answers import answer, write_answers
from fedattn.checkpoint import save_model
from fedattn.data.contexts import Context, read_contexts
from fedattn.dialogue_generator import load
from fedattn.errors import ConfigError, DataError, RunError
from fedattn.growing import LONGEST
from fedattn.sampling import Sampling

SECRET = "a private word"


@pytest.fixture
def model(tmp_path, generator):
    path = tmp_path / "busy.safetensors"
    save_model(path, generator())
    return path


def lines_of(path, *bodies):
    stored = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in bodies]
    path.write_bytes(b"\n".join(stored) + b"\n")
    return path


def generate(model, source, out, **options):
    cli_model.generate(str(model), source, out, **options)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_schema_is_replied_to_in_file_order(model, tmp_path):
    source = lines_of(
        tmp_path / "in.jsonl",
        b'\xef\xbb\xbf{"context": ["hi", "hello", "who?"]}\r',
        {
            "id": "two",
            "turns": [
                {"speaker": "ann", "text": "hi"},
                {"speaker": "bob", "text": "hello "},
                {"speaker": "ann", "text": "who"},
                {"speaker": "ann", "text": "are you?"},
            ],
        },
        b"  ",
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "who?"},
            ]
        },
    )
    answers = generate(model, source, tmp_path / "out.jsonl", max_tokens=7)
    talker = load(model)
    turns = [["hi", "hello", "who?"], ["hi", "hello", "who are you?"], ["who?"]]
    alone = [talker.reply(each, max_tokens=7) for each in turns]
    assert [each["reply"] for each in answers] == [each.text for each in alone]
    assert [each["tokens"] for each in answers] == [len(each.ids) for each in alone]
    assert [each["finished"] for each in answers] == [len(each.ids) < 7 for each in alone]
    assert [each["line"] for each in answers] == [1, 2, 4]
    assert [each.get("id") for each in answers] == [None, "two", None]


@pytest.mark.parametrize("sampling", [Sampling(repetition_penalty=2.0), Sampling(1.1, 0.9, 1.2)])
def test_a_batch_replies_what_each_line_gets_alone(model, sampling):
    talker = load(model)
    contexts = [Context(i, None, ("ab " * (i % 5 + 1), "yes", f"no {i}")[-1 - i % 3 :]) for i in
                range(1, 12)]  # fmt: skip
    options = {"sampling": sampling, "max_tokens": 12, "seed": 8}
    alone = answer(talker, contexts, **options, batch=1)
    assert answer(talker, contexts, **options, batch=4) == alone
    assert answer(talker, contexts, **options, batch=99) == alone
    # neither do other lines change what one line gets, nor its place among them
    assert answer(talker, contexts[::-2], **options, batch=4) == alone[::-2]
    assert len({each["reply"] for each in alone}) > 1


def test_equal_contexts_on_different_lines_have_randomness_of_their_own(model):
    contexts = [Context(line, None, ("hi",)) for line in (1, 2, 3)]
    options = {"sampling": Sampling(1.5), "max_tokens": 12, "batch": 2}
    first = [each["reply"] for each in answer(load(model), contexts, **options, seed=1)]
    assert len(set(first)) == 3
    assert first != [each["reply"] for each in answer(load(model), contexts, **options, seed=2)]


BAD = {
    "line 1, context[1]: empty text": {"context": ["hi", " "]},
    "line 1, context: must be a list": {"context": SECRET},
    "line 1, context[0]: must be a string": {"context": [3, SECRET]},
    "line 1, context: holds no turn": {"context": []},
    "line 1: needs one of": {"id": SECRET},
    "and only one": {"context": [SECRET], "messages": []},
    "line 1, id: must be a string": {"id": 3, "context": [SECRET]},
    "line 1: not valid JSON": b'{"context": ["a private word"',
    "line 1: not UTF-8": b'{"context": ["\xff a private word"]}',
    "line 1: an object says a key twice": b'{"context": ["a private word"], "context": []}',
    "line 1: must be a JSON object": b'["a private word"]',
    "line 1, context[0]: a lone surrogate": b'{"context": ["\\ud800 a private word"]}',
    "line 1, turns[0].text: missing": {"turns": [{"speaker": SECRET}]},
    "line 1, turns: three or more speakers": {
        "turns": [{"speaker": who, "text": SECRET} for who in "abc"]
    },
    "line 1, messages[0].role: role must be": {"messages": [{"role": "a", "content": SECRET}]},
    "line 1, messages: holds no turn": {"messages": [{"role": "system", "content": SECRET}]},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_line_is_named_by_place_and_remedy_never_by_its_text(model, tmp_path, message):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines_of(source, BAD[message], {"context": ["good"]})
    with pytest.raises(DataError) as refused:
        generate(model, source, out)
    assert message in str(refused.value)
    assert "--skip-bad" in str(refused.value)
    assert "private" not in str(refused.value)
    assert not out.exists()
    assert [each["line"] for each in generate(model, source, out, skip_bad=True)] == [2]


def test_a_file_without_a_good_line_is_refused_even_if_bad_ones_may_be_skipped(model, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines_of(source, {"context": []}, {"context": 3})
    with pytest.raises(DataError, match=r"2 problem\(s\); no line is good"):
        generate(model, source, out, skip_bad=True)
    source.write_text("\n \n")
    with pytest.raises(DataError, match="holds no conversation"):
        generate(model, source, out)
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        generate(model, tmp_path / "nowhere.jsonl", out)


def test_many_problems_are_counted(tmp_path):
    source = lines_of(tmp_path / "in.jsonl", *[{"context": []}] * 30)
    read = read_contexts(source)
    assert read.skipped == 30
    with pytest.raises(DataError, match="and 10 more"):
        read.accepted(skip_bad=False)


def test_nothing_is_overwritten_and_nothing_is_computed_in_vain(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    # refused before it is seen that there is neither model nor input
    with pytest.raises(RunError, match="exists and is not overwritten"):
        generate(tmp_path / "no-model", tmp_path / "no-input", out)
    assert out.read_text() == "precious"
    with pytest.raises(RunError, match="no such directory"):
        generate(tmp_path / "no-model", tmp_path / "no-input", tmp_path / "no" / "out.jsonl")
    with pytest.raises(ConfigError, match=r"^--top-p: 2\.0 must"):
        generate(tmp_path / "no-model", tmp_path / "no-input", out, top_p=2.0)


def test_replies_are_their_owners_alone_and_no_other_file_is_touched(model, tmp_path):
    source, out = lines_of(tmp_path / "in.jsonl", {"context": ["hi"]}), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    part.write_text("precious")
    before = os.umask(0)
    try:
        generate(model, source, out, max_tokens=2)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert part.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.jsonl", "out.jsonl", "out.jsonl.part", model.name,
    }  # fmt: skip


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out.jsonl"
    out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="exists and is not overwritten"):
        write_answers(out, [{"reply": "a"}])
    out.unlink()
    out.write_text("precious")
    with pytest.raises(RunError, match="exists and is not overwritten"):
        write_answers(out, [{"reply": "a"}])
    assert out.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("command", ["chat", "generate", "attention"])
def test_the_commands_bound_a_reply_as_the_library_does(command, tmp_path):
    for length, refused in ((LONGEST, False), (LONGEST + 1, True)):
        arguments = [command, tmp_path / "nowhere", "--max-tokens", length]
        if command == "generate":
            arguments += ["--in", tmp_path / "no.jsonl", "--out", tmp_path / "out.jsonl"]
        if command == "attention":
            arguments += ["--say", "hi"]
        done = CliRunner().invoke(cli.app, [str(each) for each in arguments])
        assert done.exit_code != 0
        assert ("--max-tokens" in done.stderr) is refused


def test_the_command_says_loud_notes_on_stderr_and_what_it_wrote_on_stdout(finished_run, tmp_path):
    source, out = lines_of(tmp_path / "in.jsonl", {"context": ["hi"]}, {}), tmp_path / "out.jsonl"
    arguments = ["generate", finished_run, "--in", source, "--out", out, "--skip-bad"]
    arguments += ["--temperature", "0.8", "--seed", "1"]
    done = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    assert done.exit_code == 0, done.exception
    assert "NOT PRIVATE" in done.stderr
    assert f"{out}: 1 reply; 1 bad line left out" in done.stdout
    assert json.loads(out.read_text())["line"] == 1


def test_contexts_and_files_of_them_print_no_text(tmp_path):
    read = read_contexts(lines_of(tmp_path / "in.jsonl", {"context": [SECRET]}))
    assert "private" not in repr(read) + repr(read.contexts)
