"""Which turns of public text are fit to learn from, and why the others are not.

What the sampled network writes is in the manner of Reddit submissions. Mark-up, links and talk
about the forum itself are dropped, as are turns with a word of the block list, text that is not
plain ASCII English, shouting, and made-up words.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

from fedattn.data.filters import repeats_itself
from fedattn.pretraining.recipe import FilterConfig

_PLAINER = str.maketrans(
    {"‘": "'", "’": "'", "´": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."}
)
_MARKUP = re.compile(r"[\[\]{}<>|\\^~@#*_=]|https?:|www\.|\b[ru]/|\.com\b", re.IGNORECASE)
_FORUM = re.compile(
    r"\b(?:sub|sub-?)?reddit(?:ors?|s)?\b|\b(?:up|down)vot\w*|\bx-?post\w*|\bcross-?post\w*"
    r"|\b(?:til|tifu|ama|eli5|lpt|cmv|mfw|mrw|nsfw|nsfl|oc|psa|dae|tl;?dr|repost\w*|karma|imgur"
    r"|gifs?|flair|megathread|throwaway|dank|memes?|this sub|the mods|giveaway)\b",
    re.IGNORECASE,
)
# Sexual and violent words that are no secret; the slurs are in _BLOCKED as hashes of their stems
_COARSE = re.compile(
    r"\b(?:sex\w*|porn\w*|nud(?:e|es|ity|ist)\w*|naked|penis\w*|vagina\w*|boob\w*|breasts?|tits?|titt\w*"
    r"|dicks?|cocks?|puss(?:y|ies)|cum|cumm\w*|orgasm\w*|masturbat\w*|horn(?:y|ies)|erect\w*|erotic\w*"
    r"|blowjob\w*|handjob\w*|anal|anus|ass|asses|arse\w*|asshole\w*|butthole\w*|fuck\w*|\w*fucker\w*|shit\w*"
    r"|bitch\w*|bastards?|whor\w*|slut\w*|hookers?|prostitut\w*|rap(?:e|ed|es|ing|ist|ists)|molest\w*"
    r"|p(?:a)?edo\w*|incest\w*|fetish\w*|kink\w*|dildo\w*|vibrators?|strippers?|milfs?|hentai"
    r"|suicid\w*|genocid\w*|holocaust\w*|nazis?|hitler\w*|terroris\w*|isis|murder\w*|lynch\w*"
    r"|cunt\w*|twats?|wank\w*|jizz|semen|sperm\w*|testicl\w*|genital\w*|condoms?|virgins?)\b",
    re.IGNORECASE,
)
_HASH = 8  # hex digits
# sha256 prefixes of slurs in lower case, plural `s` removed
_BLOCKED = re.compile(
    r"0515b9e6|08a841e9|0be9b885|0fef90ef|120f6e5b|12e6274e|15551266|158869a9"
    r"|16ea09fc|1802d081|1c4bfd10|22fc75e6|27a62b68|27eb0c4a|3175bf06|325c6871"
    r"|333f7618|33740da8|380c97e6|3b1e0d7c|3d72ace9|433ba006|43508b5c|46505206"
    r"|469c0fdb|5ad15c08|619bc82e|65961619|6d183377|74fad891|7991d51f|85580f90"
    r"|886d51e9|8f5083e3|94a877e2|96c91fa8|98b52c4b|9915ba2d|9d574366|a40ccba8"
    r"|ad64e56f|ad6cacf3|bb87adf8|bd331fb1|be00f1af|c1b4ed05|c3de533e|cc020323"
    r"|dc675e44|e7b98c6a|e84dde50|e9e8b6c5|eef3bd09|f59e28f8|f8e36d2d|f9d0d9b1"
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_KEY = re.compile(r"[^a-z0-9]+")


def plain(text: str) -> str:
    """`text` with plain quotes and dashes, one space between words."""
    return " ".join(text.translate(_PLAINER).split())


def key(text: str) -> str:
    """What makes two texts the same one: letters and digits, case aside."""
    return _KEY.sub(" ", text.lower()).strip()


def words(text: str) -> list[str]:
    """The words of `text` in lower case."""
    return _WORD.findall(text.lower())


def unfit(text: str, config: FilterConfig) -> str | None:
    """Why `text` is not learned from, or None.

    >>> unfit("i like pizza", FilterConfig()), unfit("[OC] my cat", FilterConfig())
    (None, 'markup')
    """
    size = len(text.encode())
    if not config.min_bytes <= size <= config.max_bytes:
        return "length"
    if not text.isascii():
        return "characters"
    if _MARKUP.search(text):
        return "markup"
    if _FORUM.search(text):
        return "forum"
    if _COARSE.search(text) or any(is_blocked(word) for word in words(text)):
        return "blocked"
    letters = sum(character.isalpha() for character in text)
    if letters < 0.6 * size:
        return "symbols"
    if _shouts(text, letters):
        return "capitals"
    if repeats_itself(text):
        return "repeats"
    return None


def is_blocked(word: str) -> bool:
    """Whether a lower-case word is on the list of slurs."""
    return any(
        _BLOCKED.fullmatch(hashlib.sha256(form.encode()).hexdigest()[:_HASH])
        for form in {word, word.removesuffix("s"), word.removesuffix("es")}
    )


def _shouts(text: str, letters: int) -> bool:
    """Capital letters in more than a third, or a title's capitals in most later words."""
    capitals = sum(character.isupper() for character in text)
    later = [word for word in text.split()[1:] if word[0].isalpha() and word != "I"]
    titled = sum(word[0].isupper() for word in later)
    return (letters > 5 and 3 * capitals > letters) or (len(later) > 3 and 2 * titled > len(later))


def believed(counts: Counter[str], minimum: int) -> frozenset[str]:
    """The words that occur at least `minimum` times."""
    return frozenset(word for word, count in counts.items() if count >= minimum)


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    return counts
