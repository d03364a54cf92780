"""AIML: pattern -> reply pairs of rule-based chat programs, where the reply is plain text.

AIML 1.0 (the A.L.I.C.E. project's mark-up): a category has a pattern in capitals without
punctuation and a template. What a template computes (recursion, the user's words, remembered
values) is no text, and such a template is left out; each item of a <random> is a reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from defusedxml.ElementTree import ParseError, fromstring

from fedattn.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# Their own text is what is shown.
_PLAIN = frozenset({"set", "em", "b", "i", "p", "a", "random", "li", "br", "formal", "sentence"})
_SILENT = frozenset({"think", "img"})
_QUESTIONS = re.compile(
    r"(?:what|who|where|when|why|how|which|whose|is|are|am|was|were|do|does|did|can|could|will"
    r"|would|should|shall|may|might|have|has|had)\b"
)


def parse_aiml(text: bytes, *, where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pattern and replies of each category with a plain reply; DataError if it is not XML.

    >>> list(parse_aiml(b"<aiml><category><pattern>WHO ARE *</pattern><template>Me. <think>x"
    ...     b"</think></template></category></aiml>", where="a.aiml"))
    [('who are?', ('Me.',))]
    """
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, ValueError) as error:
        raise DataError(f"{where}: not well-formed XML ({error}); reinstall the package") from None
    for element in root.iter():
        if _name(element) != "category":
            continue
        parts = {_name(child): child for child in element}
        pattern, template = parts.get("pattern"), parts.get("template")
        if pattern is None or template is None:
            continue
        said = _pattern("".join(pattern.itertext()))
        replies = tuple(dict.fromkeys(reply for reply in _replies(template) if reply))
        if said and replies:
            yield said, replies


def _pattern(text: str) -> str:
    """The pattern as a person might write it: lower case, wildcards gone, questions marked."""
    words = [word for word in text.lower().split() if word not in ("*", "_")]
    said = " ".join(words)
    return said + ("?" if _QUESTIONS.match(said) else "")


def _replies(template: Element) -> list[str]:
    """The plain texts of a template; a <random> alone gives each of its items."""
    children = [child for child in template if _name(child) not in _SILENT]
    if len(children) == 1 and _name(children[0]) == "random" and not _around(template):
        return [text for item in children[0] for text in _replies(item)]
    text = _plain(template)
    return [] if text is None else [" ".join(text.split())]


def _around(template: Element) -> str:
    """The text next to a template's children."""
    return ((template.text or "") + "".join(child.tail or "" for child in template)).strip()


def _plain(element: Element) -> str | None:
    """The element's text, or None where something would have to be computed."""
    parts = [element.text or ""]
    for child in element:
        name = _name(child)
        if name == "random" or (name not in _PLAIN and name not in _SILENT):
            return None
        if name == "br":
            parts.append(" ")
        elif name not in _SILENT:
            inner = _plain(child)
            if inner is None:
                return None
            parts.append(inner)
        parts.append(child.tail or "")
    return "".join(parts)


def _name(element: Element) -> str:
    """The tag without its namespace."""
    return str(element.tag).rpartition("}")[2]
