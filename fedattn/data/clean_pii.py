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
from typing import Final, Literal

Masked = Literal["email", "url", "card", "phone"]

REGION: Final = "US"  # whose national numbers are known; international ones (+49 ...) always are
PLACEHOLDERS: Final[dict[Masked, str]] = {
    "email": "<email>",
    "url": "<url>",
    "card": "<card>",
    "phone": "<phone>",
}
_PLACEHOLDER: Final = re.compile("|".join(PLACEHOLDERS.values()))
# Every repetition is bounded and starts at a border, so that no text takes quadratic time.
_EMAIL: Final = re.compile(
    r"(?<![\w.+-])(?:mailto:)?[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,63}"
    r"(?![\w-])"
)
_TOP: Final = r"(?:com|org|net|edu|gov|mil|info|biz|io|app|dev|tv|me|co\.[a-z]{2}|co|ly|gl|be)"
_URL: Final = re.compile(
    r"(?<!\w)(?:(?:https?|ftps?)://|www\.)[^\s<>\"]+(?<![.,;:!?'\")\]])"
    rf"|(?<![\w@.-])(?:[a-z0-9-]{{2,63}}\.){{1,6}}{_TOP}"
    r"(?:[/?#][^\s<>\"]*(?<![.,;:!?'\")\]])|(?=/?(?:[\s,;:!?'\")\]]|\.(?!\w)|$)))",
    re.IGNORECASE,
)
_CARD: Final = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?!\d|[ .,-]\d)")
_LOCAL: Final = re.compile(r"(?<![\w.,-])[2-9]\d\d-\d{4}(?![\w-]|[.,]\d)")  # NANP, no area code
_FEWEST_DIGITS: Final = 7


def mask(text: str, region: str = REGION) -> tuple[str, Counter[Masked]]:
    """`text` with placeholders for what it holds, and how many of each kind.

    `region` (ISO 3166, upper case) says whose national phone numbers are known. Nothing is known
    of names, streets, dates of birth or account numbers: those stay.

    >>> mask("mail ann@example.org or call +1 415-555-2671, not on 2024-01-05")[0]
    'mail <email> or call <phone>, not on 2024-01-05'
    """
    found: Counter[Masked] = Counter()
    while (masked := _masked_once(text, region, found)) != text:
        text = masked  # (a placeholder may leave a border where there was none)
    return text, +found


def without_placeholders(text: str) -> str:
    """`text` with a space for each placeholder."""
    return _PLACEHOLDER.sub(" ", text)


def _masked_once(text: str, region: str, found: Counter[Masked]) -> str:
    if "@" in text:
        text = _replaced(_EMAIL, text, "email", found)
    if "." in text or ":" in text:
        text = _replaced(_URL, text, "url", found)
    if sum(map(str.isdecimal, text)) < _FEWEST_DIGITS:
        return text
    text = _CARD.sub(lambda match: _card(match[0], found), text)
    text = _phones(text, region, found)
    return _replaced(_LOCAL, text, "phone", found) if region == "US" else text


def _replaced(pattern: re.Pattern[str], text: str, kind: Masked, found: Counter[Masked]) -> str:
    text, count = pattern.subn(PLACEHOLDERS[kind], text)
    found[kind] += count
    return text


def _card(number: str, found: Counter[Masked]) -> str:
    digits = [int(sign) for sign in number if sign.isdecimal()]
    if not luhn(digits) or len(set(digits)) == 1:
        return number
    found["card"] += 1
    return PLACEHOLDERS["card"]


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B).

    >>> luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 3]), luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 4])
    (True, False)
    """
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _phones(text: str, region: str, found: Counter[Masked]) -> str:
    from phonenumbers import Leniency, PhoneNumberMatcher

    parts, end = [], 0
    for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
        parts += [text[end : match.start], PLACEHOLDERS["phone"]]
        end = match.end
        found["phone"] += 1
    return "".join([*parts, text[end:]])


def known_region(region: str) -> bool:
    """Whether national phone numbers of `region` are known, e.g. `DE`."""
    from phonenumbers import SUPPORTED_REGIONS

    return region in SUPPORTED_REGIONS
