"""Cleaning of one conversation by its own words alone.

What `data.clean` asks for runs on the device, over training conversations after owners and splits
are decided (which go by ids, and ids stay), before they become tokens. No record's fate depends on
another's: cleaning maps each conversation to one or to none, so that neighbours, who differ by one
conversation, still differ by at most one after it, and the guarantee is about the data as they
were before. Held-out conversations are never cleaned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from fedattn.config import CleanConfig, DataConfig
from fedattn.data.clean_language import is_hardly_english
from fedattn.data.clean_pii import known_region, mask, without_placeholders
from fedattn.data.clean_text import junk, tidy
from fedattn.data.dialogue import Dialogue, Turn, merge
from fedattn.data.filters import keeps
from fedattn.errors import DataError

_PASSES: Final = 8  # an honest conversation takes fewer
_GERMAN: Final = (  # our own words, to try the classifier
    "wie geht es dir heute mein freund ich war gestern mit meiner schwester auf dem markt und wir "
    "haben frisches brot gekauft"
)


@dataclass(frozen=True, slots=True, repr=False)
class Cleaned:
    """What became of one conversation; counts are for the data's owner alone.

    `dialogue` is None if it is hardly English. `counts` has turns `tidied`, dropped as `symbols`,
    `mashing`, `markup` or `empty` (nothing but unseen signs), turns `joined` to the one before
    because what stood between went, and `email`, `url`, `card`, `phone` masked.
    """

    dialogue: Dialogue | None
    counts: Counter[str] = field(default_factory=Counter)

    def __repr__(self) -> str:
        return "Cleaned(<omitted>)"


def require_cleaning(rules: CleanConfig) -> None:
    """DataError, with the remedy, unless what `rules` need works here: tried on our own words.

    To be asked before records are cleaned: one whose cleaning raises counts as absent, and without
    a package that would be each of them, in silence. It depends on no data.
    """
    if rules.mask_pii:
        if not _works(lambda: mask("+1 415-555-2671")[0] == "<phone>"):
            raise _missing("mask_pii", "phonenumbers", "phonenumberslite")
        if not known_region(rules.region):
            raise DataError(
                f"data.clean.region: {rules.region} has no known phone numbers; set an ISO 3166 "
                "code such as US, GB or DE"
            )
    if rules.english and not _works(lambda: is_hardly_english(_GERMAN)):
        raise _missing("english", "py3langid", "py3langid")


def _works(trial: Callable[[], bool]) -> bool:
    try:
        return trial()
    except Exception:  # whatever a missing or broken package raises; our own words are no data
        return False


def _missing(rule: str, package: str, install: str) -> DataError:
    return DataError(
        f"data.clean.{rule}: package {package} is missing or broken; run: "
        f"pip install --force-reinstall {install}"
    )


def clean(dialogue: Dialogue, rules: CleanConfig, *, tidies: bool = False) -> Cleaned:
    """`dialogue` under `rules`, its id and people as they were; cleaning again changes nothing.

    With `junk`, `mask_pii` or `tidies` each turn is tidied; then what is personal is masked, junk
    turns go, and neighbours of one speaker are joined, until nothing changes: what was joined is
    looked at again. Of a conversation that goes on changing for eight passes no turn is left.
    `min_reply_words` is about replies, not text: `prepared` heeds it.
    """
    counts: Counter[str] = Counter()
    if rules.junk or rules.mask_pii or tidies:
        turns = dialogue.turns
        for _ in range(_PASSES):
            before, turns = turns, _pass(turns, rules, counts)
            if turns == before:
                break
        else:
            counts["empty"] += len(turns)
            turns = ()
        dialogue = replace(dialogue, turns=turns)
    if rules.english:
        spoken = " ".join(without_placeholders(turn.text) for turn in dialogue.turns)
        if is_hardly_english(spoken):
            return Cleaned(None, counts)
    return Cleaned(dialogue, counts)


def prepared(
    dialogue: Dialogue, config: DataConfig, counts: Counter[str] | None = None
) -> Dialogue | None:
    """A training conversation as it trains; None if `config.clean` leaves none that is kept.

    With no rule set it is the very same. Else it must pass the filters again: two speakers,
    `min_turns` turns, one usable reply, of at least `min_reply_words` words. What was done is
    added to `counts`, for the data's owner.
    """
    rules = config.clean
    words = rules.min_reply_words
    if not (rules.junk or rules.english or words or rules.mask_pii):
        return dialogue
    made = clean(dialogue, rules)
    if counts is not None:
        counts.update(made.counts)
    if made.dialogue is None or not keeps(made.dialogue, config, words):
        return None
    return made.dialogue


def _pass(turns: tuple[Turn, ...], rules: CleanConfig, counts: Counter[str]) -> tuple[Turn, ...]:
    kept = []
    for turn in turns:
        text = tidy(turn.text)
        counts["tidied"] += text != turn.text
        if rules.mask_pii:
            text, found = mask(text, rules.region)
            counts.update(found)
        why = junk(text) if rules.junk and text else None
        if not text:
            counts["empty"] += 1
        elif why is not None:
            counts[why] += 1
        else:
            kept.append(Turn(turn.speaker, text))
    merged = merge(kept)
    counts["joined"] += len(kept) - len(merged)
    return merged
