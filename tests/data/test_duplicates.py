"""Duplicates: the first stays, candidates are confirmed, what stays has none."""

import random

import pytest

from fedattn.data import Dialogue, Turn
from fedattn.data.clean_duplicates import duplicates

WORDS = [f"word{i}" for i in range(400)]


def talk(id, *texts):
    return Dialogue(id, tuple(Turn("ab"[i % 2], text) for i, text in enumerate(texts)))


def made_up(seed, words=60):
    rng = random.Random(seed)
    said = [rng.choice(WORDS) for _ in range(words)]
    return [" ".join(said[start : start + 10]) for start in range(0, words, 10)]


def test_case_width_spaces_and_signs_make_no_difference_and_the_first_stays():
    one = talk("1", "Hello there!", "hi, YOU")
    same = talk("2", "hello   there", "Hi you?")
    wide = talk("3", "ｈｅｌｌｏ there", "hi you")
    other = talk("4", "hello there hi", "you")  # the same words in other turns
    assert duplicates([one, same, wide, other]) == [
        None,
        "exact_duplicate",
        "exact_duplicate",
        None,
    ]


def test_a_conversation_with_a_few_other_words_is_a_near_duplicate():
    texts = made_up(1)
    near = [*texts[:-1], texts[-1].rsplit(" ", 1)[0] + " else"]
    far = made_up(2)
    corpus = [talk("1", *texts), talk("2", *near), talk("3", *far)]
    assert duplicates(corpus) == [None, "near_duplicate", None]
    assert duplicates(corpus, None) == [None, None, None]
    assert duplicates(corpus, 1.0) == [None, None, None]


def test_short_conversations_that_recur_honestly_stay_unless_equal():
    one, two = talk("1", "hi", "hello how are you"), talk("2", "hi", "hello how are you now")
    assert duplicates([one, two]) == [None, None]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_only_what_is_truly_that_alike_goes_and_what_stays_has_no_duplicate(threshold):
    """Against the slow twin: all pairs by exact overlap of five-word runs."""
    rng = random.Random(3)
    corpus = []
    for i in range(60):
        texts = made_up(i % 12)
        for _ in range(rng.randrange(6)):
            texts[rng.randrange(6)] += f" {rng.choice(WORDS)}"
        corpus.append(talk(str(i), *texts))

    def runs(item):
        said = " ".join(turn.text for turn in item.turns).split()
        return {tuple(said[i : i + 5]) for i in range(len(said) - 4)}

    found = duplicates(corpus, threshold)
    kept = [item for item, why in zip(corpus, found, strict=True) if why is None]
    assert 12 <= len(kept) < 50
    for item, why in zip(corpus, found, strict=True):
        alike = [len(runs(item) & runs(k)) / len(runs(item) | runs(k)) for k in kept]
        if why is not None:
            assert max(alike) >= threshold
    assert duplicates(kept, threshold) == [None] * len(kept)
    assert duplicates(corpus, threshold) == found
