"""Text of others, made safe to print.

A model, a file or a person can write what a terminal obeys: an escape sequence that recolours,
erases or retitles, a carriage return that overwrites a warning, an override of the direction of
writing. Shown instead is a sign for it.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_SIGNS: Final = {"\n": "↵", "\t": "→", "\x7f": "␡"}
_JOINERS: Final = frozenset("\u200c\u200d")  # scripts and emoji need them; they move nothing


def printable(text: str) -> str:
    """`text` without control over a terminal; one character stays one, so pieces can be joined.

    Line ends and tabs become arrows, other control characters of ASCII their pictures
    (U+2400..2421); C1, format characters such as directions, line and paragraph separators and
    lone surrogates become U+FFFD.

    >>> printable("a\\x1b[2Jb\\r\\nc \\u202egnp")
    'a␛[2Jb␍↵c �gnp'
    """
    return "".join(map(_shown, text))


def _shown(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    if sign < " ":
        return chr(0x2400 + ord(sign))
    kind = unicodedata.category(sign)
    if kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in _JOINERS:
        return "\N{REPLACEMENT CHARACTER}"
    return sign
