"""Whether a conversation is English, by `py3langid`: a naive Bayes classifier over byte n-grams.

Its model lies in the wheel (4 MB, read without network), its answer depends on the text alone.
lingua is more exact on a few words and brings 96 MB; langid and langdetect are no longer kept. A
whole conversation is judged at once, where naive Bayes is sure, and only one of many different
words: of a few slang words, or one said forty times, it makes any language.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

FEWEST_WORDS: Final = 20  # different ones; conversations of fewer are not judged, and stay
LEAST_CHANCE: Final = 0.1  # of English, below which a conversation goes
# Nigerian Pidgin shares most words with English chat, and takes a part of its chance.
_ENGLISH: Final = ("en", "pcm")
_WORD: Final = re.compile(r"[a-z]+|[^\W\d_]")


def is_hardly_english(text: str) -> bool:
    """Whether `text` has 20 different words and English has less than a tenth of the chances.

    A letter beyond a to z counts as a word: other scripts need no spaces.

    >>> is_hardly_english(
    ...     "Wie geht es dir heute, mein Freund? Ich war gestern mit meiner Schwester auf dem "
    ...     "Markt, und wir haben frisches Brot gekauft."
    ... )
    True
    >>> is_hardly_english("hey whats up, wanna hang out later? lol ok cu at the game then")
    False
    """
    text = text.casefold()
    if len(set(_WORD.findall(text))) < FEWEST_WORDS:
        return False
    chances = dict(_identifier().rank(text))
    return bool(sum(chances[language] for language in _ENGLISH) < LEAST_CHANCE)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
