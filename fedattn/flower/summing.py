"""Replies summed where they arise: what a grid offers that can add without moving vectors.

A summed reply gives up its words before it crosses: the server sees the rest of it, and the sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from fedattn.errors import RunError

Words = npt.NDArray[np.uint32]


class Extract(Protocol):
    """Takes the words out of a reply; picklable, so an instance of a class at module level."""

    def __call__(self, reply: Message) -> Words | None:
        """Check a reply, take its words (d,) out of it and leave the rest small.

        None if there is nothing to add (a refusal, a failed check): the reply is left as it was.
        The words may be a read-only view of the reply's own bytes.
        """


@runtime_checkable
class SummingGrid(Protocol):
    """A grid that adds up what its clients reply."""

    def push_summed(self, messages: Iterable[Message], length: int, extract: Extract) -> list[str]:
        """As `push_messages`; each reply goes through `extract` where it arises, its words added.

        Error replies are not extracted. What `extract` raises ends the run, for it is a mistake in
        it and not a client's. What was not pulled of an earlier push is given up.
        """

    def take_sum(self) -> Words:
        """The sum modulo 2^32 (length,) of the last `push_summed`.

        Of the words of exactly those replies that `pull_messages` has yielded. It is given out
        once; RunError if nothing was pushed since.
        """


def extracted(extract: Extract, reply: Message, length: int) -> Words | None:
    """What `extract` takes out of `reply`; RunError if that is not (length,) uint32, or it fails.

    Nothing is taken out of an error reply.
    """
    if reply.has_error():
        return None
    try:
        words = extract(reply)
    except Exception as error:
        raise RunError(f"summing: {type(extract).__name__} failed: {error!r}") from error
    if words is None:
        return None
    if words.dtype != np.uint32 or words.shape != (length,):
        raise RunError(
            f"summing: {type(extract).__name__} gave {words.dtype} {words.shape}, must be uint32 "
            f"({length},)"
        )
    return words
