"""Whether a conversation is English, by `py3langid`: a naive Bayes classifier over byte n-grams.

Its model lies in the wheel (4 MB, read without network), its answer depends on the text alone.
lingua is more exact on a few words and brings 96 MB; langid and langdetect are no longer kept. A
whole conversation is judged at once, where naive Bayes is sure: chat spelling and slang alone are
not taken for another language.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

FEWEST_LETTERS: Final = 40  # shorter conversations are not judged, and stay
LEAST_CHANCE: Final = 0.1  # of English, below which a conversation goes
# Nigerian Pidgin shares most words with English chat, and takes a part of its chance.
_ENGLISH: Final = ("en", "pcm")


def is_hardly_english(text: str) -> bool:
    """Whether `text` has 40 letters or more and English has less than a tenth of the chances.

    >>> is_hardly_english("Wie geht es dir heute, mein Freund? Mir geht es sehr gut.")
    True
    >>> is_hardly_english("hey whats up, wanna hang out later? lol ok cu at the game then")
    False
    """
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return False
    chances = dict(_identifier().rank(text.casefold()))
    return bool(sum(chances[language] for language in _ENGLISH) < LEAST_CHANCE)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
