"""The stored map: laws of its sums, and what it refuses, by key."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedattn.attention_view.attention_map import AttentionMap, rounded
from fedattn.errors import AttentionError

rows = st.lists(st.floats(0, 1), min_size=1, max_size=70).filter(lambda row: sum(row) > 1e-3)


@given(rows)
def test_a_rounded_row_still_sums_to_one_and_no_entry_moved_by_a_unit(row):
    row = [weight / math.fsum(row) for weight in row]
    found = rounded(row)
    assert math.isclose(math.fsum(found), 1, abs_tol=1e-9)
    assert all(abs(new - old) < 1.0001e-4 for new, old in zip(found, row, strict=True))
    assert all(new == round(new, 4) for new in found)
    assert rounded(found) == found


def test_json_gives_back_the_map(attention):
    stored = json.loads(json.dumps(attention.to_json()))
    assert AttentionMap.from_json(stored) == attention


def test_turns_sum_their_tokens_markers_included(attention):
    assert attention.by_turn() == (pytest.approx((0.3, 0.7)), pytest.approx((0.2, 0.8)))
    assert attention.mean_by_turn() == pytest.approx((0.25, 0.75))
    assert attention.mean() == pytest.approx((0.1, 0.1, 0.05, 0.1, 0.05, 0.6))


def test_a_turn_that_the_window_cut_off_has_nothing():
    late = AttentionMap(("a", "", "b"), (2, 3, 3), ("x",), ((0.5, 0.25, 0.25),))
    assert late.by_turn() == ((0, 0, 0.5, 0.5),)


def test_an_empty_reply_has_no_rows():
    empty = AttentionMap(("", "a"), (0, 0), (), ())
    assert AttentionMap.from_json(empty.to_json()) == empty
    assert (empty.by_turn(), empty.mean(), empty.mean_by_turn()) == ((), (0, 0), (0,))


def changed(key, value):
    good = {"context": ["a", "b"], "turns": [0, 1], "reply": ["c"], "weights": [[0.4, 0.6]]}
    AttentionMap.from_json(good)
    return {**good, key: value}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("context", "ab", "attention.context:"),
        ("context", ["a", 1], "attention.context:"),
        ("context", ["a"], "attention.turns:"),
        ("turns", None, "attention.turns:"),
        ("turns", [1, 0], "attention.turns:"),
        ("turns", [-1, 0], "attention.turns:"),
        ("turns", [0, True], "attention.turns:"),
        ("turns", [0, 0.5], "attention.turns:"),
        ("turns", [0, 10**9], "attention.turns:"),
        ("reply", [None], "attention.reply:"),
        ("reply", [], "attention.weights: has 1 rows"),
        ("weights", {}, "attention.weights:"),
        ("weights", [[1.0]], r"attention.weights\[0\]:"),
        ("weights", [0.4, 0.6], "attention.weights:"),
        ("weights", [["a", "b"]], r"attention.weights\[0\]:"),
        ("weights", [[True, False]], r"attention.weights\[0\]:"),
        ("weights", [[-0.2, 1.0]], r"attention.weights\[0\]:"),
        ("weights", [[math.nan, 1.0]], r"attention.weights\[0\]:"),
        ("weights", [[0.4, 0.61]], r"attention.weights\[0\]: sums to 1.0100"),
        ("more", 1, "attention: unknown key"),
    ],
)
def test_another_shape_is_refused_by_its_key(key, value, named):
    with pytest.raises(AttentionError, match=named):
        AttentionMap.from_json(changed(key, value))


@pytest.mark.parametrize("stored", [None, [], "x", {}])
def test_what_is_no_map_is_refused(stored):
    with pytest.raises(AttentionError, match="attention"):
        AttentionMap.from_json(stored)


def test_a_refusal_never_quotes_the_text():
    with pytest.raises(AttentionError) as caught:
        AttentionMap.from_json(changed("context", ["my secret", 1]))
    assert "secret" not in str(caught.value)


class Counted(tuple):
    """A row that counts how often it is gone through."""

    passes = 0

    def __iter__(self):
        Counted.passes += 1
        return super().__iter__()


def test_turns_are_summed_in_one_pass_however_many_there_are():
    size = 40
    seen = AttentionMap(("a",) * size, tuple(range(size)), ("x",), (Counted([1 / size] * size),))
    Counted.passes = 0
    assert seen.by_turn() == ((1 / size,) * size,)
    assert Counted.passes == 1


@pytest.mark.parametrize(
    ("turns", "reply", "expected"),
    [
        (("so", "hé you"), "fine, no", True),
        (("so", "hé you"), " fine, no ", True),
        (("and so", "hé you"), "fine, no", True),  # the window lacks its beginning
        (("so", "hé you"), "fine", False),
        (("so", "he you"), "fine, no", False),
        (("so",), "fine, no", False),
        (("so", "hé you", "hm"), "fine, no", False),
        (("so that", "hé you"), "fine, no", False),
        ((), "fine, no", False),
    ],
)
def test_a_map_is_of_its_own_reply_and_turns_alone(turns, reply, expected):
    context, numbers = ("", "so", "", "h", "é", "", " you"), (0, 0, 1, 1, 1, 1, 1)
    seen = AttentionMap(context, numbers, ("fine", ", no"), ((1 / 7,) * 7,) * 2)
    assert seen.is_of(turns, reply) is expected


@pytest.mark.parametrize("window", range(4, 24))
def test_a_model_s_map_is_of_what_it_was_made_for(generator, tokenizer, window):
    from fedattn.attention_view.compute import attention_of
    from fedattn.generate import reply_to

    model, turns = generator(context_tokens=window), ["hé", "über 🙂 ", "ok?"]
    reply = reply_to(model, tokenizer, turns, max_tokens=6)
    seen = attention_of(model, tokenizer, turns, reply.ids)
    assert seen.is_of(turns, reply.text)
    assert not seen.is_of(turns, reply.text + "!")
    assert not seen.is_of([*turns[:-1], "ok!"], reply.text)


def test_views_and_command_import_nothing_heavy_before_they_need_it():
    code = (
        "import fedattn.attention_view.page, fedattn.attention_view.terminal, sys;"
        "import fedattn.attention_view.picture, fedattn.cli_attention;"
        "print([m for m in ('torch', 'flwr', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
