"""Maps of a model: the right rows, the right turns, and text whatever the bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedattn.attention_view.compute import (
    attention_of,
    context_pieces,
    context_weights,
    token_pieces,
    turns_in,
)
from fedattn.errors import AttentionError
from fedattn.generate import context_of, reply_to
from fedattn.tokens import Tokenizer

SMALL, LARGE = Tokenizer(257), Tokenizer(4096)
FLAG = "👨‍👩‍👧‍👦 é🇩🇪"
ARABIC = "مرحبا بالعالم"


def plain(model, context, ids):
    """(layers, heads, T, S): attention at the place before each token, one prefix at a time."""
    rows = []
    for written in range(len(ids)):
        tokens = torch.tensor([[model.pad + 1, *ids[:written]]])
        _, seen = model.attend(torch.tensor([context]), tokens)
        rows.append(torch.stack([layer[0, :, -1] for layer in seen.cross]))
    return torch.stack(rows, 2).double()


@pytest.mark.parametrize(("layer", "head"), [(None, None), (0, None), (1, None), (None, 1), (1, 0)])
def test_a_row_is_the_attention_at_the_moment_its_token_was_written(deep, tokenizer, layer, head):
    context, ids = context_of(["abc", "de"], tokenizer, 24), [5, 9, 7]
    with torch.no_grad():
        expected = plain(deep, context, ids)
    expected = expected if layer is None else expected[layer : layer + 1]
    expected = expected if head is None else expected[:, head : head + 1]
    found = context_weights(deep, context, ids, layer=layer, head=head)
    torch.testing.assert_close(found, expected.mean((0, 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["mean", "rollout"])
def test_rows_sum_to_one_and_depend_on_no_later_token(deep, tokenizer, method):
    context = context_of(["abc", "de", "f"], tokenizer, 24)
    found = context_weights(deep, context, [5, 9, 7, 3], method=method)
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)
    start = context_weights(deep, context, [5, 9], method=method)
    torch.testing.assert_close(start, found[:2], atol=1e-6, rtol=0)


def test_layers_heads_and_methods_differ(deep, tokenizer):
    context = context_of(["abc", "de"], tokenizer, 24)
    asked = [{}, {"layer": 0}, {"layer": 1}, {"head": 0}, {"layer": 1, "head": 1}]
    asked.append({"method": "rollout"})
    found = [context_weights(deep, context, [5, 9], **each) for each in asked]
    for first in range(len(found)):
        for second in range(first):
            assert not torch.allclose(found[first], found[second], atol=1e-3)


def test_a_map_is_of_the_reply_as_generated(deep, tokenizer):
    turns = ["hi there", "yes?"]
    made = reply_to(deep, tokenizer, turns, 6)
    seen = attention_of(deep, tokenizer, turns, made.ids)
    assert "".join(seen.reply).strip() == made.text
    last = torch.stack([layer[0].mean(0) for layer in made.attention.cross]).mean(0)
    for row, expected in zip(seen.weights, last[: len(made.ids)].tolist(), strict=True):
        assert row == pytest.approx(expected, abs=1.1e-4)


@pytest.mark.parametrize("window", range(4, 30))
def test_a_cut_window_maps_to_the_right_turns(generator, tokenizer, window):
    turns = ["aaa", "bb", "", "ccccc", "dd"]
    model = generator(context_tokens=window)
    seen = attention_of(model, tokenizer, turns, [5])
    whole = [(text, turn) for turn, said in enumerate(turns) for text in ("", *said)]
    expected = whole[-window:]
    assert list(zip(seen.context, seen.turns, strict=True)) == expected
    sums = [
        sum(w for w, t in zip(seen.weights[0], seen.turns, strict=True) if t == k) for k in range(5)
    ]
    assert seen.by_turn()[0] == pytest.approx(sums)
    assert sum(seen.by_turn()[0]) == pytest.approx(1)


def test_an_empty_reply_is_an_empty_map(deep, tokenizer):
    seen = attention_of(deep, tokenizer, ["hi"], [])
    assert (seen.reply, seen.weights, seen.context) == ((), (), ("", "h", "i"))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"layer": 2}, r"layer is 2, must be in 0..1"),
        ({"layer": -1}, r"layer is -1"),
        ({"head": 2}, r"head is 2, must be in 0..1"),
        ({"head": 0, "method": "rollout"}, "drop layer and head"),
    ],
)
def test_what_there_is_not_is_refused(deep, tokenizer, asked, named):
    with pytest.raises(AttentionError, match=named):
        attention_of(deep, tokenizer, ["hi"], [5], **asked)


def test_no_turn_is_refused(deep, tokenizer):
    with pytest.raises(AttentionError, match="no turn"):
        attention_of(deep, tokenizer, [], [5])


@given(st.text(max_size=30))
def test_pieces_are_the_text(text):
    for tokenizer in (SMALL, LARGE):
        ids = tokenizer.encode(text)
        found = token_pieces(tokenizer, ids)
        assert len(found) == len(ids)
        assert "".join(found) == text


@given(st.lists(st.integers(0, 261), max_size=20))
def test_pieces_of_any_bytes_are_what_decoding_gives(ids):
    assert "".join(token_pieces(SMALL, ids)) == SMALL.decode(ids)


def test_a_character_over_several_tokens_belongs_to_its_first():
    ids = SMALL.encode("a🎬b")
    assert token_pieces(SMALL, ids) == ("a", "🎬", "", "", "", "b")


def test_a_window_that_cuts_a_character_shows_that_it_did():
    context = context_of(["🎬b"], SMALL, 3)
    assert context_pieces(SMALL, context) == ("\ufffd", "\ufffd", "b")


def test_broken_bytes_of_one_turn_do_not_join_the_next():
    first, *rest = SMALL.encode("é")
    context = [SMALL.you, first, SMALL.me, *rest]
    assert context_pieces(SMALL, context) == ("", "\ufffd", "", "\ufffd")
    assert turns_in(context, SMALL) == [0, 0, 1, 1]


@pytest.mark.parametrize("text", [FLAG, ARABIC, "=" * 300, "\x00\x1b[31m", " ", "<me> <you> <eos>"])
def test_any_turn_can_be_looked_at(generator, text):
    model = generator(context_tokens=700)
    seen = attention_of(model, SMALL, [text, text], [5, 200, 130])
    assert "".join(seen.context) == text * 2
    assert set(seen.turns) == {0, 1}
