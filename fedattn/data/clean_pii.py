"""Emails, URLs, card-like and phone numbers become placeholders; text by text.

Phone numbers are found by `phonenumbers` (Google's libphonenumber in Python, well kept, without
dependencies; its small build `phonenumberslite`), which knows each country's numbers and leaves
dates, prices and times alone. The rest is a pattern each, and Luhn's check for cards. Microsoft's
Presidio does more (names, places) with spaCy and one of its language models: heavy for an edge
device, and what it misses cannot be stated.

A placeholder is ASCII that the public byte-level vocabulary spells like any text (4 tokens at
4,096 ids); none reads like one of our special tokens. No placeholder is masked again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias

Span: TypeAlias = tuple[int, int]  # where it starts, and where it ends
Masked = Literal["email", "url", "card", "phone"]

REGION: Final = "US"  # whose national numbers are known; international ones (+49 ...) always are
PLACEHOLDERS: Final[dict[Masked, str]] = {
    "email": "<email>",
    "url": "<url>",
    "card": "<card>",
    "phone": "<phone>",
}
_PLACEHOLDER: Final = re.compile("|".join(PLACEHOLDERS.values()))
# Every repetition is bounded, or starts at a border and ends at the first sign that does not fit,
# so that no text takes quadratic time.
_END: Final = r"(?<![.,;:!?'\")\]])"  # what closes a sentence is no part of an address
_LINK: Final = re.compile(  # with the login, the address and the query that may stand in it
    rf"(?:[a-z][a-z\d+-]{{1,9}}://|(?<![^\W_])www\.)[^\s<>\"]+{_END}", re.IGNORECASE
)
_EMAIL: Final = re.compile(
    r"(?<![\w.+-])(?:mailto:)?[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,63}"
    r"(?![^\W\d_])"
)
_TOP: Final = r"(?:com|org|net|edu|gov|mil|info|biz|io|app|dev|tv|me|co\.[a-z]{2}|co|ly|gl|be)"
_DOMAIN: Final = re.compile(
    rf"(?<![\w@.-])(?:[a-z0-9-]{{2,63}}\.){{1,6}}{_TOP}(?::\d{{1,5}})?"
    rf"(?:[/?#][^\s<>\"]*{_END}|(?=[\s,;:!?'\")\]<>*_]|\.(?!\w)|$))",
    re.IGNORECASE,
)
# Groups of digits, parted by spaces and dashes, or by a point between groups as long as a card's.
# What follows a point that is none of these is a fraction.
_GROUPS: Final = re.compile(
    r"(?<!\d)(?<!\d\.)\d+(?:(?:[ \-\u2010-\u2015]{1,3}|(?<=\d{4})\.(?=\d{4}))\d+)*"
)
_GROUP: Final = re.compile(r"\d+")
_CARD_DIGITS: Final = range(13, 20)
_CARD_GROUP: Final = 4  # digits of each group of a card's number but the last, at least
_LOCAL: Final = re.compile(r"(?<![\w.,-])[2-9]\d\d-\d{4}(?![\w-]|[.,]\d)")  # NANP, no area code
_FEWEST_DIGITS: Final = 7
_PASSES: Final = 8  # an honest text takes fewer


def mask(text: str, region: str = REGION) -> tuple[str, Counter[Masked]]:
    """`text` with placeholders for what it holds, and how many of each kind.

    `region` (ISO 3166, upper case) says whose national phone numbers are known. Nothing is known
    of names, streets, dates of birth or account numbers: those stay. Masking again changes nothing;
    a text that goes on changing for eight passes becomes empty.

    >>> mask("mail ann@example.org or call +1 415-555-2671, not on 2024-01-05")[0]
    'mail <email> or call <phone>, not on 2024-01-05'
    """
    found: Counter[Masked] = Counter()
    for _ in range(_PASSES):
        masked = _masked_once(text, region, found)
        if masked == text:
            return text, +found
        text = masked  # (a placeholder may leave a border where there was none)
    return "", +found


def without_placeholders(text: str) -> str:
    """`text` with a space for each placeholder."""
    return _PLACEHOLDER.sub(" ", text)


def _masked_once(text: str, region: str, found: Counter[Masked]) -> str:
    # A link may hold an address, and an address a domain: the longest first.
    text = _replaced(_LINK, text, "url", found)
    if "@" in text:
        text = _replaced(_EMAIL, text, "email", found)
    if "." in text:
        text = _replaced(_DOMAIN, text, "url", found)
    if sum(map(str.isdecimal, text)) < _FEWEST_DIGITS:
        return text
    text = _without(_cards(text), text, "card", found)
    text = _without(_phones(text, region), text, "phone", found)
    return _replaced(_LOCAL, text, "phone", found) if region == "US" else text


def _replaced(pattern: re.Pattern[str], text: str, kind: Masked, found: Counter[Masked]) -> str:
    text, count = pattern.subn(PLACEHOLDERS[kind], text)
    found[kind] += count
    return text


def _without(spans: Iterable[Span], text: str, kind: Masked, found: Counter[Masked]) -> str:
    """`text` with a placeholder for each of `spans`, which are in order and do not overlap."""
    parts, end = [], 0
    for start, stop in spans:
        parts += [text[end:start], PLACEHOLDERS[kind]]
        end = stop
        found[kind] += 1
    return "".join([*parts, text[end:]])


def _cards(text: str) -> Iterator[Span]:
    """Where card-like numbers stand: all digits of a row of groups, or some of its groups.

    Some alone must be grouped as cards are and begin as they do (22 to 99), or a list of years or
    of scores would hold one by chance. Those that overlap are one.
    """
    for row in _GROUPS.finditer(text):
        groups = [(group.span(), _digits(group[0])) for group in _GROUP.finditer(text, *row.span())]
        if _is_card([digit for _, digits in groups for digit in digits]):
            yield row.span()
            continue
        start, stop = 0, 0
        for first, ((begin, _), head) in enumerate(groups):
            end = _card_end(groups[first : first + max(_CARD_DIGITS)]) if head[:2] > [2, 1] else 0
            if not end:
                continue
            if begin >= stop:
                if stop:
                    yield start, stop
                start = begin
            stop = max(stop, end)
        if stop:
            yield start, stop


def _card_end(groups: list[tuple[Span, list[int]]]) -> int:
    """Where the longest card-like number ends that begins with `groups`; 0 if none does."""
    end, number = 0, list[int]()
    for (_, stop), digits in groups:
        number += digits
        if _is_card(number):
            end = stop
        if len(digits) < _CARD_GROUP or len(number) >= max(_CARD_DIGITS):
            break
    return end


def _digits(text: str) -> list[int]:
    """The digits of `text`; of more than a card has, so many that it is none."""
    return [int(sign) for sign in text[: max(_CARD_DIGITS) + 1]]


def _is_card(number: list[int]) -> bool:
    return len(number) in _CARD_DIGITS and len(set(number)) > 1 and luhn(number)


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B).

    >>> luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 3]), luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 4])
    (True, False)
    """
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _phones(text: str, region: str) -> Iterator[Span]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
        yield match.start, match.end


def known_region(region: str) -> bool:
    """Whether national phone numbers of `region` are known, e.g. `DE`."""
    from phonenumbers import SUPPORTED_REGIONS

    return region in SUPPORTED_REGIONS
