"""Saying the same in other words, by public rules: for the context of an example that trains.

Contractions both ways ("i am" and "i'm"), common chat spellings ("you" and "u"), the case of the
first letter, and the mark at the end. No rule was learned from anybody's conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

Chance: TypeAlias = Callable[[float], bool]  # whether what has this chance happens, at random

# Groups of what means the same; the first is what a chat spelling stands for.
_SAME: Final = (
    ("i am", "i'm", "im"),
    ("i have", "i've", "ive"),
    ("i will", "i'll"),
    ("i would", "i'd"),
    ("you are", "you're", "youre", "ur"),
    ("you have", "you've"),
    ("you will", "you'll"),
    ("we are", "we're"),
    ("they are", "they're", "theyre"),
    ("it is", "it's"),
    ("that is", "that's", "thats"),
    ("what is", "what's", "whats"),
    ("do not", "don't", "dont"),
    ("does not", "doesn't", "doesnt"),
    ("did not", "didn't", "didnt"),
    ("is not", "isn't", "isnt"),
    ("are not", "aren't", "arent"),
    ("was not", "wasn't", "wasnt"),
    ("can not", "cannot", "can't", "cant"),
    ("could not", "couldn't", "couldnt"),
    ("will not", "won't", "wont"),
    ("would not", "wouldn't", "wouldnt"),
    ("have not", "haven't", "havent"),
    ("going to", "gonna"),
    ("want to", "wanna"),
    ("got to", "gotta"),
    ("kind of", "kinda"),
    ("do not know", "don't know", "dunno"),
    ("i do not know", "i don't know", "idk"),
    ("you", "u"),
    ("are", "r"),
    ("your", "ur"),
    ("okay", "ok"),
    ("yes", "yeah", "yea"),
    ("because", "cuz", "bc"),
    ("though", "tho"),
    ("please", "pls"),
    ("thanks", "thx"),
    ("people", "ppl"),
    ("really", "rly"),
    ("to be honest", "tbh"),
    ("by the way", "btw"),
    ("oh my god", "omg"),
)
_OTHERS: Final[dict[str, tuple[str, ...]]] = {}
for _group in _SAME:
    for _said in _group:
        _OTHERS[_said] = tuple(
            dict.fromkeys((*_OTHERS.get(_said, ()), *(each for each in _group if each != _said)))
        )
_PLACE: Final = re.compile(
    r"(?<![\w'’<])(?:"
    + "|".join(
        re.escape(said).replace(r"\ ", " ").replace("'", "['’]")
        for said in sorted(_OTHERS, key=len, reverse=True)
    )
    + r")(?![\w'’>])",
    re.IGNORECASE,
)
_END: Final = re.compile(r"(?<=\w)([.!]?)$")


def paraphrased(text: str, chance: float, happens: Chance) -> str:
    """`text` with each place where a rule holds changed with probability `chance`.

    >>> paraphrased("I'm fine. are you?", 1.0, lambda chance: chance == 1.0)
    'im fine. r u?'
    >>> paraphrased("I'm fine. are you?", 0.5, lambda _: False)
    "I'm fine. are you?"
    """

    def other(match: re.Match[str]) -> str:
        said = match[0]
        if not happens(chance):
            return said
        choices = _OTHERS.get(said.casefold().replace("’", "'"), ())
        if not choices:  # (to a pattern without case, Turkish letters are an i, too)
            return said
        chosen = choices[_index(len(choices), happens)]
        return chosen[0].upper() + chosen[1:] if said[0].isupper() else chosen

    text = _PLACE.sub(other, text)
    if text and text[0].isalpha() and happens(chance):
        text = _other_case(text[0]) + text[1:]
    end = _END.search(text)
    if end is not None and happens(chance):
        text = text[: end.start()] + ("" if end[1] else ".")
    return text


def _index(count: int, happens: Chance) -> int:
    """Uniform on 0..count-1 (to 2^-53): the first with chance 1/count, and so on."""
    return next((i for i in range(count - 1) if happens(1 / (count - i))), count - 1)


def _other_case(letter: str) -> str:
    other = letter.lower() if letter.isupper() else letter.upper()
    return other if len(other) == 1 else letter  # "ß" has no capital of one letter
