"""Cleaning of one conversation by its own words alone.

What `data.clean` asks for runs on the device, over training conversations after owners and splits
are decided (which go by ids, and ids stay), before they become tokens. No record's fate depends on
another's: cleaning maps each conversation to one or to none, so that neighbours, who differ by one
conversation, still differ by at most one after it, and the guarantee is about the data as they
were before. Held-out conversations are never cleaned.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from fedattn.config import CleanConfig, DataConfig
from fedattn.data.clean_language import is_hardly_english
from fedattn.data.clean_pii import REGION, mask, without_placeholders
from fedattn.data.clean_text import junk, tidy
from fedattn.data.dialogue import Dialogue, Turn, merge
from fedattn.data.filters import keeps

OFF = CleanConfig()


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


def clean(
    dialogue: Dialogue, rules: CleanConfig, region: str = REGION, *, tidies: bool = False
) -> Cleaned:
    """`dialogue` under `rules`, its id and people as they were; cleaning again changes nothing.

    With `junk`, `mask_pii` or `tidies` each turn is tidied; then what is personal is masked, junk
    turns go, and neighbours of one speaker are joined, until nothing changes: what was joined is
    looked at again. (It ends: every pass but the first drops a turn, joins two or masks more.)
    `min_reply_words` is about replies, not text: `prepared` heeds it. `region` as of `mask`.
    """
    counts: Counter[str] = Counter()
    if rules.junk or rules.mask_pii or tidies:
        before: tuple[Turn, ...] = ()
        turns = dialogue.turns
        while turns != before:
            before, turns = turns, _pass(turns, rules, region, counts)
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
    if config.clean == OFF:
        return dialogue
    made = clean(dialogue, config.clean)
    if counts is not None:
        counts.update(made.counts)
    words = config.clean.min_reply_words
    if made.dialogue is None or not keeps(made.dialogue, config, words):
        return None
    return made.dialogue


def _pass(
    turns: tuple[Turn, ...], rules: CleanConfig, region: str, counts: Counter[str]
) -> tuple[Turn, ...]:
    kept = []
    for turn in turns:
        text = tidy(turn.text)
        counts["tidied"] += text != turn.text
        if rules.mask_pii:
            text, found = mask(text, region)
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
