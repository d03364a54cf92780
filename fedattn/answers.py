"""Replies to a file of conversations, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedattn.data.contexts import Context
from fedattn.dialogue_generator import DialogueGenerator, Numbered
from fedattn.durable import write_new
from fedattn.sampling import Sampling


def answer(
    generator: DialogueGenerator,
    contexts: Sequence[Context],
    *,
    sampling: Sampling,
    max_tokens: int,
    seed: int | None,
    batch: int,
) -> list[dict[str, Any]]:
    """For each of `contexts`, in their order: line, id (if it has one), reply, tokens, finished.

    finished is false where `max_tokens` cut a reply off. Contexts of alike lengths are computed
    `batch` at a time, with what each would be replied to alone (`DialogueGenerator.replies`); a
    line's randomness depends on `seed` and its number in the file alone.
    """
    order = sorted(range(len(contexts)), key=lambda place: sum(map(len, contexts[place].turns)))
    made: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        replies = generator.replies(
            [Numbered(contexts[place].line, contexts[place].turns) for place in places],
            sampling=sampling,
            max_tokens=max_tokens,
            seed=seed,
        )
        for place, reply in zip(places, replies, strict=True):
            context = contexts[place]
            made[place] = {
                "line": context.line,
                **({} if context.id is None else {"id": context.id}),
                "reply": reply.text,
                "tokens": len(reply.ids),
                "finished": reply.is_finished,
            }
    return [made[place] for place in range(len(contexts))]


def write_answers(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    """Write one ASCII line of JSON for each to the new file `path`: as `write_new`.

    Replies follow from conversations, so the file is its owner's alone.
    """
    write_new(path, "".join(json.dumps(each) + "\n" for each in answers).encode())
