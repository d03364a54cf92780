"""Conversations as token ids, and the examples in them; without torch.

A record is one conversation, tokenised once. An example is one of its replies with the turns
before it; every turn of the context starts with <me> (the reply's speaker) or <you> (another).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fedattn.config import DataConfig
from fedattn.data import Dialogue
from fedattn.data.clean import prepared
from fedattn.data.filters import is_example
from fedattn.tokens import Tokenizer

ENDS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)  # come from a person, not from data


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """One conversation as token ids: `turns[i]` was said by `speakers[i]`; prints no content."""

    speakers: tuple[int, ...]
    turns: tuple[tuple[int, ...], ...]
    replies: tuple[int, ...]  # indices of the turns to learn from

    def __repr__(self) -> str:
        return "Record(<omitted>)"


class Pair(NamedTuple):
    """A context and its reply as token ids, without padding."""

    context: list[int]
    reply: list[int]


def tokenize(
    dialogues: Iterable[Dialogue], tokenizer: Tokenizer, max_reply_bytes: int, min_words: int = 0
) -> list[Record]:
    """One record a dialogue, in order; a dialogue without a usable reply has empty `replies`.

    What a usable reply is, `is_example` says.
    """
    dialogues = list(dialogues)
    texts = [turn.text for dialogue in dialogues for turn in dialogue.turns]
    ids = iter(tokenizer.encode_batch(texts))
    records = []
    for dialogue in dialogues:
        names = {name: number for number, name in enumerate(dialogue.speakers)}
        records.append(
            Record(
                speakers=tuple(names[turn.speaker] for turn in dialogue.turns),
                turns=tuple(tuple(next(ids)) for _ in dialogue.turns),
                replies=tuple(
                    index
                    for index in range(1, len(dialogue.turns))
                    if is_example(dialogue, index, max_reply_bytes, min_words)
                ),
            )
        )
    return records


def training_records(
    dialogues: Sequence[Dialogue], tokenizer: Tokenizer, config: DataConfig
) -> list[Record]:
    """The records that train, in order: cleaned as `config.clean` says, then tokenised.

    At most one record a dialogue, from that dialogue alone: what cleaning leaves nothing of, and
    what cannot be cleaned or tokenised, is absent (`surviving`). For what is held out: `tokenize`.
    """

    def cleaned(some: Sequence[Dialogue]) -> list[Record]:
        kept = [made for made in (prepared(each, config) for each in some) if made is not None]
        return tokenize(kept, tokenizer, config.max_reply_bytes, config.clean.min_reply_words)

    return surviving(dialogues, cleaned)


def surviving(
    dialogues: Sequence[Dialogue], tokenized: Callable[[Sequence[Dialogue]], list[Record]]
) -> list[Record]:
    """`tokenized(dialogues)`; if that raises, the records of those that do not raise alone.

    One record that cannot be cleaned or tokenised must not take the others with it: alone, it
    counts as absent, which one record's guarantee covers. A panic in compiled code is no
    Exception; only what asks the process to end goes through.
    """
    try:
        return tokenized(dialogues)
    except ENDS:
        raise
    except BaseException:
        if len(dialogues) == 1:
            return []
        return [record for item in dialogues for record in surviving([item], tokenized)]


def pair(record: Record, reply: int, tokenizer: Tokenizer, context_tokens: int) -> Pair:
    """The example whose reply is turn `reply`: the last `context_tokens` ids of what came before.

    The reply ends with <eos>.
    """
    speakers, turns = record.speakers, record.turns
    first, length = reply, 0
    while first and length < context_tokens:
        first -= 1
        length += 1 + len(turns[first])
    context: list[int] = []
    for index in range(first, reply):
        context.append(tokenizer.me if speakers[index] == speakers[reply] else tokenizer.you)
        context.extend(turns[index])
    return Pair(context[-context_tokens:], [*turns[reply], tokenizer.eos])
