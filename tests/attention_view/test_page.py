"""HTML: whatever people wrote stays text, and nothing is fetched or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.attention_view.page import attention_page, heat_html

NASTY = "<script>alert(1)</script><img src=x onerror='y'>\"&amp;{{ 7*7 }}</style>"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, attributes and text; that every tag is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.text = [], [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        self.text[where] = self.text.get(where, "") + data


def whole(attention):
    return attention_page(attention, reply="".join(attention.reply), what="a test")


@pytest.mark.parametrize("text", [NASTY, "a\x00b\x1b", "مرحبا", "👨‍👩‍👧‍👦"])
def test_markup_in_turns_and_replies_stays_text(text):
    seen = AttentionMap(("", text), (0, 0), (text,), ((0.5, 0.5),))
    page = attention_page(seen, reply=text, what=text, notes=(text,))
    read, clean = Page(page), Page(whole(AttentionMap(("", "a"), (0, 0), ("b",), ((0.5, 0.5),))))
    assert sorted(set(read.tags)) == sorted({*clean.tags})
    assert "script" not in read.tags
    assert "img" not in read.tags
    if "\x00" not in text:
        for tag in ("h1", "span", "th"):
            assert text[:17] in read.text[tag]
        assert text in read.text["p"]
    assert "49" not in read.text["span"]


def test_a_page_asks_for_nothing_and_runs_nothing(attention):
    page = whole(attention)
    read = Page(page)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not {"script", "link", "iframe", "img", "object", "form", "base"} & set(read.tags)
    assert not [
        name for _, name, _ in read.attributes if name.startswith("on") or name in ("src", "href")
    ]
    assert not re.search(r"url\(|@import|https?:", page)


def test_shades_follow_the_weights(attention):
    read = Page(str(heat_html(attention)))
    styles = [value for tag, name, value in read.attributes if (tag, name) == ("span", "style")]
    means = [float(re.match(r"--mean:([\d.]+)", style)[1]) for style in styles]
    assert max(means) == means[-1] == 1.0
    assert means[2] == min(means)
    for token in range(2):  # each reply token's own shades, for when it is pointed at
        own = [float(re.search(rf"--w{token}:([\d.]+)", style)[1]) for style in styles]
        assert max(range(6), key=own.__getitem__) == 5
    cells = [value for tag, name, value in read.attributes if (tag, name) == ("td", "style")]
    assert len(cells) == 2 * 6
    assert cells[2] != cells[8] == "--at:0.00"


def test_shares_by_turn_and_cells_are_in_words_too(attention):
    page = heat_html(attention)
    assert "25%" in page
    assert "75%" in page
    assert 'title="sea ← fish 70%"' in page


def test_columns_are_grouped_by_turn(attention):
    read = Page(str(heat_html(attention)))
    spans = [value for tag, name, value in read.attributes if name == "colspan"]
    assert spans == ["3", "3"]
    assert read.tags.count("tr") == 2 + 2


def test_several_on_one_page_need_the_style_once(attention):
    assert "<style>" in heat_html(attention)
    later = heat_html(attention, with_style=False)
    assert "<style>" not in later
    assert "<details>" in later
    assert "<details open>" in heat_html(attention, is_open=True)


@pytest.mark.parametrize("size", [3, 64, 65, 90])
@pytest.mark.parametrize("with_style", [True, False])
def test_every_token_of_a_reply_of_any_length_can_be_pointed_at(size, with_style):
    seen = AttentionMap(("", "a"), (0, 0), ("x",) * size, ((0.5, 0.5),) * size)
    short = AttentionMap(("", "a"), (0, 0), ("x",), ((0.5, 0.5),))
    page = heat_html(seen, with_style=with_style)
    if not with_style:  # another heat on the page has the style
        page = heat_html(short) + page
    Page(str(page))
    pointed = {int(place) for place in re.findall(r"\.t(\d+):is\(:hover", page)}
    assert set(range(size)) <= pointed
    assert max(int(place) for place in re.findall(r'"token t(\d+)"', page)) == size - 1


def test_a_note_and_a_title_turn_no_writing_round(attention):
    page = attention_page(attention, reply="x", what="a\u202eb", notes=("c\u2066d\x1b",))
    assert not set(page) & set("\u202e\u2066\x1b")


@pytest.mark.parametrize(
    "empty", [AttentionMap((), (), (), ()), AttentionMap(("a",), (0,), (), ())]
)
def test_an_empty_reply_is_said(empty):
    assert "nothing was looked at" in heat_html(empty)
    assert "<table>" not in whole(empty)


def test_turns_out_of_the_window_are_said():
    late = AttentionMap(("a", "", "b"), (1, 2, 2), ("x",), ((0.5, 0.25, 0.25),))
    assert "1 earlier turn did not fit" in heat_html(late)
