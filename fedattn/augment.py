"""Random changes of a drawn example, from the record's own words alone (`train.augment`).

The changed example is a randomised function of one record: which words go or change is decided by
fresh bits of the step's stream, by public rules and by nothing of another record. It is clipped
like any other example, so that the sensitivity, and the epsilon, are those of training without.
Each of `train.draws` draws is changed by itself. The reply, which is what is learned, stays as it
is, and held-out examples are never changed.

turn_drop    each turn of the context but the last is left out with this chance; older turns move up
truncate     with this chance a uniformly random number, 1 or more, of the last turns is kept
paraphrase   each place where a rule of `paraphrase.py` holds is changed with this chance

With all three at zero no randomness is taken and the example is `records.pair`'s.
"""

from __future__ import annotations

from typing import Final

from fedattn.config import AugmentConfig
from fedattn.paraphrase import Chance, paraphrased
from fedattn.randomness import Randomness
from fedattn.records import ENDS, Pair, Record, pair
from fedattn.tokens import Tokenizer

OFF: Final = AugmentConfig()


def augmented(
    record: Record,
    reply: int,
    tokenizer: Tokenizer,
    context_tokens: int,
    chances: AugmentConfig,
    randomness: Randomness,
) -> Pair:
    """The example whose reply is turn `reply`, with its context changed at random.

    The context has the last turn before the reply, and at most `context_tokens` ids.
    """
    if chances == OFF:
        return pair(record, reply, tokenizer, context_tokens)
    happens = _chance(randomness)
    places = _kept(record, reply, context_tokens, chances.turn_drop, happens)
    if chances.truncate and happens(chances.truncate):
        places = places[-1 - randomness.below(len(places)) :]
    turns = [record.turns[place] for place in places]
    if chances.paraphrase:
        turns = _rephrased(turns, tokenizer, context_tokens, chances.paraphrase, happens)
    context: list[int] = []
    for place, ids in zip(places, turns, strict=True):
        is_own = record.speakers[place] == record.speakers[reply]
        context.append(tokenizer.me if is_own else tokenizer.you)
        context.extend(ids)
    return Pair(context[-context_tokens:], [*record.turns[reply], tokenizer.eos])


def _kept(
    record: Record, reply: int, context_tokens: int, turn_drop: float, happens: Chance
) -> list[int]:
    """The turns of the context, oldest first: as many as it holds, the last always."""
    places: list[int] = []
    length = 0
    for place in range(reply - 1, -1, -1):
        if length >= context_tokens:
            break
        if places and turn_drop and happens(turn_drop):
            continue
        places.append(place)
        length += 1 + len(record.turns[place])
    return places[::-1]


def _rephrased(
    turns: list[tuple[int, ...]],
    tokenizer: Tokenizer,
    context_tokens: int,
    chance: float,
    happens: Chance,
) -> list[tuple[int, ...]]:
    """The turns in other words; one that fills the context by itself stays as it is.

    If compiled code fails over them they stay, too: alone, and not with the whole batch.
    """
    try:
        texts = [tokenizer.decode(ids) if len(ids) < context_tokens else "" for ids in turns]
        said = [paraphrased(text, chance, happens) for text in texts]
        changed = [place for place, text in enumerate(said) if text != texts[place]]
        new = dict(zip(changed, tokenizer.encode_batch([said[i] for i in changed]), strict=True))
        return [tuple(new.get(place, turn)) for place, turn in enumerate(turns)]
    except ENDS:
        raise
    except BaseException:  # (a panic in compiled code is no Exception)
        return turns


def _chance(randomness: Randomness) -> Chance:
    def happens(chance: float) -> bool:
        """Whether what has this chance (rounded down to 2^-64) happens."""
        return int.from_bytes(randomness.bytes(8), "little") < int(chance * 2.0**64)

    return happens
