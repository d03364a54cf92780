"""Maps to view, and a generator with the whole of Unicode."""

from __future__ import annotations

from typing import Any

import pytest

from fedattn.attention_view.attention_map import AttentionMap


def even(context: int) -> tuple[float, ...]:
    return tuple(1 / context for _ in range(context))


@pytest.fixture
def attention() -> AttentionMap:
    """Two turns of a marker and two words each; the last word has most."""
    return AttentionMap(
        context=("", "hi", " there", "", "red", " fish"),
        turns=(0, 0, 0, 1, 1, 1),
        reply=("blue", " sea"),
        weights=((0.1, 0.1, 0.1, 0.1, 0.1, 0.5), (0.1, 0.1, 0.0, 0.1, 0.0, 0.7)),
    )


@pytest.fixture
def saying():
    """Makes a map of one turn that says `text`, a token a character, and a reply `reply`."""

    def make(text: str, reply: str = "ok") -> AttentionMap:
        size = len(text) + 1
        return AttentionMap(
            context=("", *text), turns=(0,) * size, reply=(reply,), weights=(even(size),)
        )

    return make


@pytest.fixture
def deep(generator) -> Any:
    """A busy generator of three encoder and two decoder layers."""
    return generator(3, encoder_layers=3, decoder_layers=2, context_tokens=24)
