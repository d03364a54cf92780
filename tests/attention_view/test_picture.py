"""A PNG is one, of the size that was said, for whatever text."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import pytest

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.attention_view.picture import heat_png, picture_size
from fedattn.errors import AttentionError


def chunks(png):
    """Name -> joined data of each chunk; every checksum is right."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = {}, 8
    while place < len(png):
        size = struct.unpack(">I", png[place : place + 4])[0]
        name, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size :][:4])[0] == zlib.crc32(name + data)
        found[name] = found.get(name, b"") + data
        place += 12 + size
    return found


TEXTS = ["hi", "$x^$ \\frac{", "مرحبا 🎬", "\x00\x1b", "=" * 60, "<b>&"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_picture_is_a_png_of_the_size_that_was_said(saying, text):
    seen = saying(text, reply=text)
    found = chunks(heat_png(seen))
    assert struct.unpack(">II", found[b"IHDR"][:8]) == picture_size(seen)
    assert list(found)[-1] == b"IEND"


def test_more_tokens_make_a_larger_picture(saying):
    small, large = picture_size(saying("a" * 20)), picture_size(saying("a" * 40))
    assert large[0] - small[0] == 20 * 30
    assert large[1] == small[1]


def test_a_picture_that_cannot_be_drawn_is_refused(saying):
    long = AttentionMap(("a",), (0,), ("x",) * 2_500, ((1.0,),) * 2_500)
    for seen in (long, saying("a" * 2_500)):
        with pytest.raises(AttentionError, match="too large; ask for a shorter reply"):
            heat_png(seen)


def test_other_weights_are_another_picture(attention):
    other = AttentionMap(
        attention.context, attention.turns, attention.reply, attention.weights[::-1]
    )
    assert heat_png(attention) == heat_png(attention)
    assert chunks(heat_png(other))[b"IDAT"] != chunks(heat_png(attention))[b"IDAT"]


@pytest.mark.parametrize(
    "empty", [AttentionMap((), (), (), ()), AttentionMap(("a",), (0,), (), ())]
)
def test_an_empty_reply_is_a_picture_that_says_so(empty):
    assert struct.unpack(">II", chunks(heat_png(empty))[b"IHDR"][:8]) == picture_size(empty)


def test_no_window_is_opened_and_no_global_state_touched():
    code = (
        "import sys; from fedattn.attention_view.attention_map import AttentionMap;"
        "from fedattn.attention_view.picture import heat_png;"
        "heat_png(AttentionMap(('a',), (0,), ('b',), ((1.0,),)));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
