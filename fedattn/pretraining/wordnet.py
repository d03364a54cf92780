"""WordNet's example sentences: short modern English, each after the meaning that it shows.

A line of a data file ends in `| definition; "example"; "example"`. Examples that name an author
after the closing quote are quotations and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_EXAMPLE = re.compile(r'"([^"]+)"(?=;|$)')
_WORDS = 3  # shorter examples are phrases


def examples(text: str) -> Iterator[list[str]]:
    """A definition and its examples, where there are any.

    >>> list(examples('1 29 v 01 nap 0 000 | sleep a little; "he naps after lunch"'))
    [['sleep a little', 'he naps after lunch']]
    """
    for line in text.splitlines():
        _, bar, gloss = line.partition(" | ")
        if line.startswith("  ") or not bar:
            continue  # the licence stands at the head of each file
        definition = gloss.partition('"')[0].strip().rstrip(";:").strip()
        shown = [found for found in _EXAMPLE.findall(gloss.strip()) if _is_sentence(found)]
        if definition and shown:
            yield [definition, *shown]


def _is_sentence(text: str) -> bool:
    return len(text.split()) >= _WORDS
