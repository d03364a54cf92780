"""The heat line tells the same with and without colour, and is safe to print."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from rich.console import Console

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.attention_view.terminal import heat_line
from fedattn.attention_view.visible import CUT, cut, full_shade, pieces


def printed(attention, **options):
    file = io.StringIO()
    Console(file=file, width=100, **options).print(heat_line(attention))
    return file.getvalue()


def test_without_colour_it_tells_shares_and_top_words_in_numbers(attention):
    assert printed(attention).splitlines() == [
        " 25% ██······ model ›hi there",
        " 75% ██████·· you   ›red fish",
        "most: “fish” 60%, “›” 10%, “hi” 10%",
    ]


def test_no_colour_is_asked_for_and_given(attention):
    text = printed(attention, force_terminal=True, no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*[34]\d", text)


@pytest.mark.parametrize("system", ["standard", "256", "truecolor"])
def test_three_shades_and_none_stay_four_in_any_number_of_colours(system):
    rest = 7
    row = (0.4, 0.25, 0.16, *(0.19 / rest,) * rest)
    seen = AttentionMap(tuple("abcdefghij"), (0,) * 10, ("x",), (row,))
    text = printed(seen, force_terminal=True, color_system=system)
    codes = [re.search(rf"\x1b\[([0-9;]+)m{letter}\x1b", text)[1] for letter in "abc"]
    assert len(set(codes)) == 3
    assert re.search(r"\x1b\[0mdefghij\n", text)


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\rb", "\x9b2J", "\x07", "a\u202eb", "\u2028"])
def test_nothing_in_a_turn_moves_the_cursor(saying, text):
    plain = heat_line(saying(text, reply=text)).plain
    assert not set(plain) & set("\x1b\r\x9b\x07\u202e\u2028")
    assert len(plain.splitlines()) == 2


def test_right_to_left_words_keep_their_number_beside_them(saying):
    plain = heat_line(saying("م")).plain
    assert "“\u2068م\u2069”" in plain


def test_turns_out_of_the_window_are_said():
    late = AttentionMap(("a", "", "b"), (2, 3, 3), ("x",), ((0.5, 0.25, 0.25),))
    assert printed(late).startswith("… 2 turns before this did not fit the model's window\n")


@pytest.mark.parametrize(
    "empty", [AttentionMap((), (), (), ()), AttentionMap(("a",), (0,), (), ())]
)
def test_an_empty_reply_is_said(empty):
    assert "nothing was written" in printed(empty)


def test_a_long_word_is_cut_where_it_is_named(saying):
    seen = AttentionMap(("=" * 300,), (0,), ("x",), ((1.0,),))
    assert printed(seen).splitlines()[-1] == f"most: “{'=' * 23}…” 100%"


def test_rich_markup_in_a_turn_stays_text(saying):
    assert "[bold]x[/]" in heat_line(saying("[bold]x[/]")).plain


def test_every_token_is_in_one_piece_and_an_ending_joins_its_beginning():
    seen = AttentionMap(("", "🎬", "", "a", "", "b"), (0, 0, 0, 0, 1, 1), ("x",), ((1 / 6,) * 6,))
    found = pieces(seen)
    assert [(each.text, each.places) for each in found] == [
        ("›", (0,)),
        ("🎬", (1, 2)),
        ("a", (3,)),
        ("›", (4,)),
        ("b", (5,)),
    ]
    assert sum(each.weight(seen.weights[0]) for each in found) == pytest.approx(1)


def test_an_emoji_of_several_characters_stays_whole(saying):
    assert "👨‍👩‍👧‍👦🇩🇪é" in "".join(each.text for each in pieces(saying("👨‍👩‍👧‍👦🇩🇪é")))


def test_what_is_shown_has_no_control_or_format_character_of_unicode():
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    planted = {sign for sign in map(chr, range(0x110000)) if unicodedata.category(sign) in kinds}
    (shown,) = pieces(AttentionMap(("".join(planted),), (0,), ("x",), ((1.0,),)))
    left = planted & set(shown.text)
    assert left == {"\u200c", "\u200d"}  # they join letters and emoji, and move nothing


def test_even_attention_is_drawn_light():
    assert 1 / 50 / full_shade([1 / 50] * 50) == pytest.approx(1 / 3)
    assert full_shade([]) > 0
    assert full_shade([0.0, 0.0]) > 0


def test_cut_keeps_its_promise():
    assert [len(cut("abcdef", size)) for size in (1, 3, 6, 9)] == [1, 3, 6, 6]


def test_a_turn_whose_beginning_the_window_cut_is_shown_so(attention):
    seen = AttentionMap(attention.context[2:], attention.turns[2:], ("x",), ((0.25,) * 4,))
    assert printed(seen).splitlines()[0] == " 25% ██······ model … there"
    assert CUT not in printed(attention)
