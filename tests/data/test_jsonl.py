"""The import: every bad line has a named outcome, and no message holds the file's text."""

import json
import traceback

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedattn.config import DataConfig
from fedattn.data import load_dialogues
from fedattn.data.jsonl import parse_jsonl, read_jsonl
from fedattn.data.problems import LISTED, Note, Problem
from fedattn.errors import DataError

CANARY = "CANARYtext"


def turns(*pairs):
    return [{"speaker": who, "text": text} for who, text in pairs]


def messages(*pairs):
    return [{"role": who, "content": text} for who, text in pairs]


def line(**body):
    return json.dumps(body)


GOOD = line(id="c1", turns=turns(("ann", "hi"), ("bob", "hello"), ("ann", "how?"), ("bob", "ok")))
CHAT = messages(("user", f"hi {CANARY}"), ("assistant", "hello"))
TWO = turns((f"ann {CANARY}", "hi"), ("bob", "hello"))

# name: (line, what is said about it); every line holds the canary where it can.
BAD = {
    "not_utf8": (
        b'{"id": "CANARYtext\xff"}',
        "line 1: not UTF-8; save the file as UTF-8 [not_utf8]",
    ),
    "invalid_json": (
        '{"id": "CANARYtext",',
        "line 1: not valid JSON; write one complete JSON object on one line [invalid_json]",
    ),
    "constant": (
        '{"id": "c", "turns": [], "CANARYtext": NaN}',
        "line 1: not valid JSON; write one complete JSON object on one line [invalid_json]",
    ),
    "deep_json": (
        "[" * 200_000 + CANARY,
        "line 1: not valid JSON; write one complete JSON object on one line [invalid_json]",
    ),
    "repeated_key": (
        '{"CANARYtext": 1, "CANARYtext": 2}',
        "line 1: an object says a key twice; keep one [repeated_key]",
    ),
    "a_list": (
        '["CANARYtext"]',
        "line 1: must be a JSON object, not a list or a value [wrong_type]",
    ),
    "null": ("null", "line 1: must be a JSON object, not a list or a value [wrong_type]"),
    "missing_id": (
        line(turns=TWO),
        "line 1, id: missing; give each conversation an id of its own [missing_id]",
    ),
    "id_type": (line(id=[CANARY], turns=TWO), "line 1, id: must be a string [wrong_type]"),
    "id_empty": (
        line(id="", turns=TWO),
        "line 1, id: empty text; remove it or fill it in [empty_text]",
    ),
    "no_turns": (
        line(id=CANARY, CANARYtext=1),
        "line 1, turns: missing; add it [missing_field]",
    ),
    "turns_type": (line(id="c", turns=CANARY), "line 1, turns: must be a list [wrong_type]"),
    "turn_type": (
        line(id="c", turns=[*TWO, CANARY]),
        "line 1, turns[2]: must be an object [wrong_type]",
    ),
    "text_missing": (
        line(id="c", turns=[*TWO, {"speaker": CANARY}]),
        "line 1, turns[2].text: missing; add it [missing_field]",
    ),
    "text_type": (
        line(id="c", turns=[*TWO, {"speaker": CANARY, "text": 7}]),
        "line 1, turns[2].text: must be a string [wrong_type]",
    ),
    "text_empty": (
        line(id="c", turns=turns((CANARY, "hi"), ("bob", " \n"))),
        "line 1, turns[1].text: empty text; remove it or fill it in [empty_text]",
    ),
    "surrogate": (
        '{"id": "c", "turns": [{"speaker": "a", "text": "CANARYtext \\ud83d"}, '
        '{"speaker": "b", "text": "x"}]}',
        "line 1, turns[0].text: a lone surrogate escape (\\ud800..\\udfff) is no text; "
        "write both or none [lone_surrogate]",
    ),
    "one_speaker": (
        line(id="c", turns=turns((CANARY, "a"), (CANARY, "b"))),
        "line 1, turns: fewer than two speakers; a conversation has two [one_speaker]",
    ),
    "three_speakers": (
        line(id="c", turns=turns((CANARY, "a"), ("b", "b"), ("c", "c"))),
        "line 1, turns: three or more speakers; a conversation has two, split it by pairs "
        "[many_speakers]",
    ),
    "two_schemas": (
        line(id="c", turns=TWO, messages=CHAT),
        "line 1: `turns` and `messages` on one line; keep one [two_schemas]",
    ),
    "unknown_role": (
        line(messages=[*CHAT, {"role": CANARY, "content": "x"}]),
        "line 1, messages[2].role: role must be user, assistant, system or developer; "
        "rename or remove it [unknown_role]",
    ),
    "content_parts": (
        line(messages=[*CHAT, {"role": "user", "content": [{"text": CANARY}]}]),
        "line 1, messages[2].content: must be a string [wrong_type]",
    ),
    "user_type": (line(user=7, messages=CHAT), "line 1, user: must be a string [wrong_type]"),
    "only_system": (
        line(messages=messages(("system", CANARY))),
        "line 1, messages: fewer than two speakers; a conversation has two [one_speaker]",
    ),
}


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_has_a_named_outcome_by_line_and_field(name):
    text, said = BAD[name]
    file = parse_jsonl(as_bytes(text))
    assert str(file.findings[0]) == said
    assert len(file.findings) == 1
    assert file.dialogues == ()


@pytest.mark.parametrize("name", BAD)
def test_no_error_or_repr_holds_text_of_the_file(name, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + as_bytes(BAD[name][0]))
    with pytest.raises(DataError, match=r"line 2") as caught:
        load_dialogues(DataConfig(source="jsonl", path=str(path)))
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(read_jsonl(path))
    assert CANARY not in shown


def test_values_print_no_text():
    dialogue = parse_jsonl(line(id=CANARY, turns=TWO).encode()).dialogues[0]
    assert CANARY not in repr((dialogue, dialogue.turns))


def test_a_bad_line_stops_the_import_unless_it_is_skipped_explicitly(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{GOOD}\n{BAD['text_empty'][0]}\n{BAD['one_speaker'][0]}\n{BAD['a_list'][0]}")
    config = DataConfig(source="jsonl", path=str(path))
    with pytest.raises(DataError, match=r"4 problem\(s\); fix them, or set") as caught:
        load_dialogues(config)
    assert "line 3, id: an earlier line has this id" in str(caught.value)
    path.write_text(f"{GOOD}\n{BAD['text_empty'][0]}\n{BAD['a_list'][0]}\n{BAD['null'][0]}\n")
    assert [item.id for item in load_dialogues(config, skip_bad=True)] == ["c1"]
    assert read_jsonl(path).skipped == {Problem.EMPTY_TEXT: 1, Problem.WRONG_TYPE: 2}


def test_a_duplicate_id_is_never_skipped():
    file = parse_jsonl(f"{GOOD}\n{GOOD}".encode())
    with pytest.raises(DataError, match=r"these cannot be skipped\n  line 2, id: an earlier line"):
        file.accepted(skip_bad=True)


def test_equal_conversations_without_ids_are_duplicates():
    file = parse_jsonl(f"{line(messages=CHAT)}\n{line(messages=CHAT)}".encode())
    assert [item.problem for item in file.findings] == [Problem.DUPLICATE_ID]


def test_all_problems_are_listed_up_to_a_cap():
    file = parse_jsonl(b"[]\n" * (LISTED + 5))
    with pytest.raises(DataError) as caught:
        file.accepted(skip_bad=False)
    lines = str(caught.value).splitlines()
    assert (
        lines[0]
        == "file: 25 problem(s); fix them, or set data.skip_bad: true to leave those lines out"
    )
    assert len(lines) == LISTED + 2
    assert lines[-1] == "  and 5 more"


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_conversations_is_empty(content):
    file = parse_jsonl(content)
    assert [str(item) for item in file.findings] == [
        "file: the file holds no conversation; write one JSON object a line [empty_file]"
    ]
    with pytest.raises(DataError, match="holds no conversation"):
        file.accepted(skip_bad=True)


def test_skipping_everything_is_refused():
    with pytest.raises(DataError, match="no good conversation is left"):
        parse_jsonl(b"[]").accepted(skip_bad=True)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_named(kind, tmp_path):
    path = tmp_path if kind == "folder" else tmp_path / "none.jsonl"
    with pytest.raises(DataError, match=r"cannot be read \(\w+\); check data.path") as caught:
        read_jsonl(path)
    assert caught.value.__context__ is None


def test_bom_crlf_and_blank_lines_are_accepted_and_counted():
    plain = parse_jsonl(GOOD.encode())
    other = parse_jsonl(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n \n")
    assert other.dialogues == plain.dialogues
    assert other.findings == ()
    assert other.notes == {Note.BOM: 1, Note.CRLF: 2, Note.BLANK_LINE: 2}


def test_utf16_is_named_as_not_utf8():
    assert parse_jsonl(GOOD.encode("utf-16")).findings[0].problem is Problem.NOT_UTF8


def test_only_lf_ends_a_line():
    text = json.dumps(
        {"id": "c", "turns": turns(("a", "x\u2028y\x85z"), ("b", "w"))}, ensure_ascii=False
    )
    assert parse_jsonl(text.encode()).dialogues[0].turns[0].text == "x\u2028y\x85z"


def test_turns_of_one_speaker_are_merged_and_other_keys_ignored():
    body = line(id="c", turns=turns(("a", "x "), ("a", "y"), ("b", "z")), model="any")
    (dialogue,) = parse_jsonl(body.encode()).dialogues
    assert [(turn.speaker, turn.text) for turn in dialogue.turns] == [("a", "x y"), ("b", "z")]
    assert dialogue.people == ("a", "b")


def test_in_messages_only_the_user_is_a_person():
    named = line(id="c", user="ann", messages=CHAT)
    (dialogue,) = parse_jsonl(named.encode()).dialogues
    assert dialogue.speakers == ("assistant", "user")
    assert dialogue.people == ("ann",)
    (unnamed,) = parse_jsonl(line(id="c", messages=CHAT).encode()).dialogues
    assert unnamed.people == ("conversation/c",)


def test_system_messages_are_left_out_and_counted():
    body = line(id="c", messages=messages(("system", "be kind"), ("developer", "x")) + CHAT)
    file = parse_jsonl(body.encode())
    assert [turn.speaker for turn in file.dialogues[0].turns] == ["user", "assistant"]
    assert file.notes == {Note.SYSTEM_MESSAGE: 2}


def test_a_made_id_depends_on_the_messages_alone():
    other = line(messages=messages(("user", "a"), ("assistant", "b")))
    alone = parse_jsonl(line(messages=CHAT).encode())
    second = parse_jsonl(f"{other}\n{line(extra=1, messages=CHAT)}".encode())
    assert alone.dialogues[0].id == second.dialogues[1].id
    assert alone.notes == {Note.MADE_ID: 1}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "turns", "messages", "speaker", "text", "role", "content"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=json_values)
def test_any_json_is_judged_not_raised(value):
    file = parse_jsonl(json.dumps(value).encode())
    assert file.dialogues or file.findings


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.binary(max_size=60))
def test_any_bytes_are_judged_not_raised(content):
    parse_jsonl(content)
