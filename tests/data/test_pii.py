"""Masking: what is personal goes, what only looks like it stays, twice is once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.data import clean_pii
from fedattn.data.clean_pii import PLACEHOLDERS, luhn, mask
from fedattn.tokens import Tokenizer


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ann.lee+chat@mail.example.org!", "write to <email>!"),
        ("ünï@exämple.de, ok", "<email>, ok"),
        ("(bob_1@example.com)", "(<email>)"),
        ("see https://example.org/a?b=c#d.", "see <url>."),
        ("it's on www.example.org/x, look", "it's on <url>, look"),
        ("YouTube.com/watch?v=1 and bbc.co.uk!", "<url> and <url>!"),
        ("call 415-555-2671 or (202) 555-0143", "call <phone> or <phone>"),
        ("+49 30 901820 is the office", "<phone> is the office"),
        ("my number is 2025550143 :)", "my number is <phone> :)"),
        ("just 555-1234", "just <phone>"),
        ("card 4111 1111 1111 1111 exp 12/27", "card <card> exp 12/27"),
        ("5500-0055-5555-5559", "<card>"),
        ("378282246310005", "<card>"),
        ("card 4111111111111111 123", "card <card> 123"),
        ("my card is 4111 1111 1111 1111 12/26 cvv 123", "my card is <card> 12/26 cvv 123"),
        ("exp 12/25 4111 1111 1111 1111", "exp 12/25 <card>"),
        ("card 1 4111 1111 1111 1111", "card 1 <card>"),
        ("4111111111111111 5500005555555559", "<card> <card>"),
        ("visa-4111111111111111", "visa-<card>"),
        ("visa,4111111111111111", "visa,<card>"),
        ("4111.1111.1111.1111", "<card>"),
        ("4111\u20131111\u20131111\u20131111", "<card>"),
        ("4111 - 1111 - 1111 - 1111", "<card>"),
        ("https://example.com/unsub?email=ann@example.org&token=SECRET123", "<url>"),
        ("https://ann@example.com/reset?token=SECRET", "<url>"),
        ("https://user:pw@example.com/private/path", "<url>"),
        ("ssh://ann:pw@example.de/home, ok", "<url>, ok"),
        ("see example.com:8080/private?token=S", "see <url>"),
        ("_www.example.org/ann_", "_<url>"),
        ("_ann@example.org_", "<email>_"),
        ("ann@example.org-thanks", "<email>-thanks"),
        ("ann@example.org--", "<email>--"),
        ("ann@example.org2", "<email>2"),
    ],
)
def test_what_is_personal_becomes_a_placeholder(text, masked):
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-01-05 at 12:30:15, or 05/01/2024",
        "it cost $1,299.99, no: 2,000,000 yen",
        "3.14159265358979",
        "from 1999-2004 I was 5-10",
        "192.168.100.200",
        "4111 1111 1111 1112",  # no card: the check digit is wrong
        "0000 0000 0000 0000",
        "card 1 4111 1111 1111 1112",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "2024-01-05 2024-02-06 2024-03-07 2024-04-08",
        "21-19 18-21 21-15 11-21 25-23 22-20 21-18",
        "$1,299.99 2,499.99 12.500,00 1.234.567.890.123",
        "v1.2.3 2.10.14 2026.1.3.11",
        "ok.so what.are you doing...tomorrow",
        "me @ home @ 5",
        "2 + 2 = 4, 100%",
        "I <3 you <email>",
    ],
)
def test_dates_prices_versions_and_wrong_cards_stay(text):
    assert mask(text) == (text, {})


def test_every_kind_is_counted():
    text = "a@b.com c@d.org www.e.net 4111111111111111 415-555-2671 +44 20 7183 8750"
    masked, found = mask(text)
    assert found == {"email": 2, "url": 1, "card": 1, "phone": 2}
    assert masked.split() == ["<email>"] * 2 + ["<url>", "<card>"] + ["<phone>"] * 2


def test_national_numbers_are_known_by_region():
    text = "ruf an: 030 901820"
    assert mask(text)[0] == text
    assert mask(text, "DE")[0] == "ruf an: <phone>"


def test_luhn_is_the_slow_twin():
    def twin(digits):
        total = 0
        for place, digit in enumerate(reversed(digits)):
            doubled = 2 * digit if place % 2 else digit
            total += doubled - 9 if doubled > 9 else doubled
        return total % 10 == 0

    for number in range(0, 10**6, 37):
        digits = [int(sign) for sign in str(number)]
        assert luhn(digits) == twin(digits)


# Crowded with what the rules look for, so that borders between them are met.
pieces = st.sampled_from(
    ["a@b.com", "@", ".com", "www.", "https://", "4111111111111111", "415-555-2671", "+1 ", "555",
     "-", "1", "<", ">", "<url>", "email", " ", "é", "٣", "x", ".", "/"]
)  # fmt: skip
texts = st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_masking_twice_is_masking_once(text):
    masked, found = mask(text)
    assert mask(masked) == (masked, {})
    assert (masked == text) == (not found)


LONG = ["a", "1", "1 ", "a@", "a.", "www.", "1-", "+1", "http://", "<"]
CARDS = ["4111111111111111 ", "4111 1111 1111 1111 "]


@pytest.mark.parametrize("unit", [*LONG, *CARDS])
def test_long_texts_of_one_thing_are_read_whole_and_twice_at_most(unit, monkeypatch):
    """A pattern that backtracks over them, or a pass for each find, would not come back."""
    passes = []
    true_pass = clean_pii._masked_once

    def counted(text, region, found):
        passes.append(len(text))
        return true_pass(text, region, found)

    monkeypatch.setattr(clean_pii, "_masked_once", counted)
    masked, _ = mask(unit * (60_000 // len(unit)))
    assert len(passes) <= 2
    assert unit not in CARDS or not any(map(str.isdecimal, masked))


def test_years_in_a_row_hold_no_card_by_chance():
    for first in range(1900, 2090):
        text = "born " + " ".join(str(year) for year in range(first, first + 10))
        assert mask(text) == (text, {})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 99_999).map(str) | st.sampled_from(CARDS), max_size=8))
def test_no_card_stays_whatever_numbers_stand_around_it(parts):
    assert "4111 1111 1111 1111" not in mask(" ".join(map(str.strip, parts)))[0]
    assert "4111111111111111" not in mask(" ".join(map(str.strip, parts)))[0]


def test_a_text_that_goes_on_changing_becomes_empty(monkeypatch):
    monkeypatch.setattr(clean_pii, "_masked_once", lambda text, *_: text + "x")
    assert mask("a") == ("", {})


@pytest.mark.parametrize("size", [257, 4096])
def test_placeholders_are_plain_text_to_the_tokenizer(size):
    tokenizer = Tokenizer(size)
    for placeholder in PLACEHOLDERS.values():
        ids = tokenizer.encode(placeholder)
        assert tokenizer.decode(ids) == placeholder
        assert max(ids) < tokenizer.vocab_size
