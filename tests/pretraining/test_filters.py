"""What is not learned from."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedattn.pretraining import filters
from fedattn.pretraining.filters import believed, count_words, is_blocked, key, plain, unfit
from fedattn.pretraining.recipe import FilterConfig

CONFIG = FilterConfig()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "length"),
        ("so " * 200, "length"),
        ("naïve café", "characters"),
        ("[OC] my cat", "markup"),
        ("see https://example.org", "markup"),
        ("posted in r/aww", "markup"),
        ("TIL that cats purr", "forum"),
        ("please upvote this", "forum"),
        ("that subreddit again", "forum"),
        ("they were naked", "blocked"),
        ("12 + 30 = 42, ok", "markup"),
        ("1,000,000 - 12:30", "symbols"),
        ("STOP SHOUTING at me", "capitals"),
        ("The New Star Wars Trailer Is Out", "capitals"),
        ("no no no no no no no no no no no no no", "repeats"),
    ],
)
def test_unfit_text_is_dropped_for_its_reason(text, reason):
    assert unfit(text, CONFIG) == reason


@pytest.mark.parametrize(
    "text",
    [
        "how are you doing today?",
        "I live in New York.",
        "my class passed the bass assessment",  # holds blocked words as parts of others alone
        "what's your favorite kind of music? i like rap",
        "No way!",
    ],
)
def test_everyday_chat_is_kept(text):
    assert unfit(text, CONFIG) is None


def test_a_word_of_the_hashed_list_is_blocked_with_its_plural(monkeypatch):
    listed = re.compile(hashlib.sha256(b"flumph").hexdigest()[:8])
    monkeypatch.setattr(filters, "_BLOCKED", listed)
    assert is_blocked("flumph")
    assert is_blocked("flumphs")
    assert not is_blocked("flump")
    assert unfit("what a Flumph you are", CONFIG) == "blocked"


@given(st.text(max_size=60))
def test_making_text_plain_twice_changes_nothing_more(text):
    assert plain(plain(text)) == plain(text)


@given(st.text(max_size=60))
def test_case_and_punctuation_do_not_tell_texts_apart(text):
    assert key(text.lower()) == key(f" {text.lower()}!?")


def test_words_are_believed_from_a_count_on():
    counts = count_words(["a cat", "A cat's", "cat"])
    assert believed(counts, 2) == {"a", "cat"}
