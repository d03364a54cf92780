"""Which conversations and replies train: decided by each record and public parameters alone.

No record's fate depends on another's, or adding one conversation could evict another and the
privacy guarantee, which is about adding one, would be gone.
"""

from __future__ import annotations

import re

from fedattn.config import DataConfig
from fedattn.data.dialogue import Dialogue, Example

_UNIT = 8  # characters
_RUN = re.compile(r"(\S.{0,7}?)\1{9,}", re.DOTALL)  # a unit of 1-8 characters, ten times on end
_WORDS = 12  # shorter texts repeat words for good reason
_COPY_BYTES = 32  # shorter turns ("yes", "how are you?") recur in honest conversations


def keeps(dialogue: Dialogue, config: DataConfig, min_words: int = 0) -> bool:
    """Whether the conversation is kept.

    It is if it has exactly two speakers, at least `min_turns` turns and at least one example.
    """
    return (
        len(dialogue.speakers) == 2
        and len(dialogue.turns) >= config.min_turns
        and any(
            is_example(dialogue, index, config.max_reply_bytes, min_words)
            for index in range(1, len(dialogue.turns))
        )
    )


def examples(dialogue: Dialogue, max_reply_bytes: int, min_words: int = 0) -> list[Example]:
    """The (context, reply) examples of one conversation, in order; see `is_example`."""
    return [
        Example(dialogue.turns[:index], dialogue.turns[index])
        for index in range(1, len(dialogue.turns))
        if is_example(dialogue, index, max_reply_bytes, min_words)
    ]


def is_example(dialogue: Dialogue, index: int, max_reply_bytes: int, min_words: int = 0) -> bool:
    """Whether turn `index` is a reply to learn from.

    It is if a turn comes before it, it has at most `max_reply_bytes` bytes of UTF-8 and at least
    `min_words` words (`clean.min_reply_words`; 0 for what is held out) and is no
    degenerate repeat: of itself (`repeats_itself`), or word for word of an earlier turn
    of this conversation that has at least 32 bytes. What is no example stays context.
    """
    text = dialogue.turns[index].text
    size = len(text.encode())
    if index < 1 or size > max_reply_bytes or repeats_itself(text):
        return False
    if min_words and len(text.split()) < min_words:
        return False
    return size < _COPY_BYTES or all(text != turn.text for turn in dialogue.turns[:index])


def repeats_itself(text: str) -> bool:
    """Whether `text` is mostly one thing over and over.

    Either half of its characters or more are a unit of 1-8 characters at least ten times on end,
    or it has at least 12 words of which fewer than a third are distinct, case aside.

    >>> repeats_itself("ha" * 12), repeats_itself("spam and " * 6), repeats_itself("oh no no no")
    (True, True, False)
    """
    run = _RUN.search(text) if _repeats_in_the_middle(text) else None
    if run and 2 * (run.end() - run.start()) >= len(text):
        return True
    words = text.casefold().split()
    return len(words) >= _WORDS and 3 * len(set(words)) < len(words)


def _repeats_in_the_middle(text: str) -> bool:
    """True for every text of which a run is half or more; a fifth of the time of looking for one.

    Such a run holds the middle of the text. Of its ten units or more, five lie before it or five
    behind it, so that four units there are what lies a unit further.
    """
    middle = len(text) // 2
    for unit in range(1, _UNIT + 1):
        if text[middle : middle + 4 * unit] == text[middle + unit : middle + 5 * unit]:
            return True
        first = middle - 5 * unit
        if first >= 0 and text[first : middle - unit] == text[first + unit : middle]:
            return True
    return False
