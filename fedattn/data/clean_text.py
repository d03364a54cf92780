"""One turn's text: what is tidied in it, and whether it is junk. Decided by that text alone."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

from fedattn.data.clean_pii import without_placeholders

Junk = Literal["symbols", "mashing", "markup"]

# Signs that are not seen: soft hyphen, zero-width space, direction marks, word joiner, byte order
# mark, annotation marks. They split numbers and words for every rule that comes after.
_UNSEEN: Final = re.compile(
    "[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]+"
)
# Joiners have a meaning between signs of scripts and emoji that use them, and none beside ASCII.
_LOOSE_JOINER: Final = re.compile(
    "(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])"
)
# A run of spaces and control characters that holds more than plain spaces.
_SPACES: Final = re.compile(r"(?<! ) *(?:[^\S ]|[\x00-\x1f\x7f-\x9f])[\s\x00-\x1f\x7f-\x9f]*")
_MARKUP: Final = re.compile(r"</?[A-Za-z!][^<>]{0,200}>|&(?:#\d{1,7}|[A-Za-z]{2,8});")
_ROWS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS: Final = tuple(  # five keys of a row in order: "asdfg", "hgfds"
    keys[start : start + 5]
    for row in _ROWS
    for keys in (row, row[::-1])
    for start in range(len(row) - 4)
)
_LONG: Final = 8  # letters of a word that needs a vowel
_LETTERS: Final = re.compile("[a-z]+")


def tidy(text: str) -> str:
    """`text` in NFC, without unseen signs, stripped; line breaks and controls become a space.

    Plain spaces stay as they are, however many: what is held out keeps them, too.

    >>> tidy(" caf\u0065\u0301\u200b\\n\\x07 bar ")
    'café bar'
    """
    while (tidied := _tidied_once(text)) != text:
        text = tidied
    return text


def _tidied_once(text: str) -> str:
    text = _UNSEEN.sub("", unicodedata.normalize("NFC", text))
    text = _LOOSE_JOINER.sub("", _SPACES.sub(" ", text))
    return unicodedata.normalize("NFC", text).strip()


def junk(text: str) -> Junk | None:
    """Why the turn holds no words, or None.

    - `markup`: tags and entities are half of it or more;
    - `symbols`: no letter or digit of any script, placeholders of masked words aside;
    - `mashing`: nothing but words that no one means: five neighbouring keys of a keyboard row in
      order, or eight ASCII letters or more of at least four kinds with hardly a vowel.

    >>> junk("?!?"), junk("asdfghjkl"), junk("<p><br></p>"), junk("<3 you"), junk("7")
    ('symbols', 'mashing', 'markup', None, None)
    """
    words = without_placeholders(text)
    tags = sum(len(found[0]) for found in _MARKUP.finditer(words))
    if tags and 2 * tags >= len(words.strip()):
        return "markup"
    if not any(sign.isalnum() for sign in words):
        return "symbols"
    return "mashing" if all(map(_is_mashing, words.casefold().split())) else None


def _is_mashing(word: str) -> bool:
    """Whether keys were hit and nothing was written; `word` in lower case."""
    if not _LETTERS.fullmatch(word):
        return False
    if any(keys in word for keys in _NEIGHBOURS):
        return True
    vowels = sum(letter in "aeiouy" for letter in word)
    return len(word) >= _LONG and len(set(word)) >= 4 and 8 * vowels < len(word)
