"""What the server measures, on conversations that it may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedattn.attention_view.compute import attention_of
from fedattn.batches import Pair, Record, tokenize
from fedattn.config import Config
from fedattn.data import load_partition
from fedattn.generate import OPENERS, Quality, Reply, bits_per_byte, choose_pairs, reply_to
from fedattn.kept_tokens import open_tokens
from fedattn.model import AttentionGenerator
from fedattn.protocol import HELD_OUT_BYTES, other_key, protocol_of
from fedattn.tokens import Tokenizer


class Evaluation:
    """Bits per byte of held-out replies, and replies to openers of our own."""

    def __init__(self, config: Config, model: AttentionGenerator) -> None:
        self.config, self.model = config, model
        self.tokenizer = Tokenizer(model.shape.vocab_size)
        test, validation = self._held_out()
        self.test = self._pairs(test, config.eval.examples, "test")
        self.progress = self._pairs(validation, config.eval.progress_examples, "validation")

    def quality(self, pairs: Sequence[Pair]) -> Quality:
        """Bits per byte of `pairs` under the model as it is now."""
        self.model.eval()
        return bits_per_byte(self.model, pairs, self.tokenizer)

    @property
    def protocol(self) -> str | None:
        """The frozen protocol's name if the test pairs are its own and the config says so, too."""
        return None if other_key(self.config) is not None else protocol_of(self.test)

    @property
    def openers(self) -> tuple[str, ...]:
        """What sample replies answer."""
        return OPENERS[: self.config.eval.samples]

    def replies(self) -> list[Reply]:
        """Greedy replies to openers of our own: no held-out person's words enter a report."""
        return [reply_to(self.model, self.tokenizer, [opener]) for opener in self.openers]

    def samples(self, before: Sequence[Reply]) -> list[dict[str, Any]]:
        """The replies now, what each looked at, and those of `before`, as a report holds them."""
        return [
            {
                "context": [opener],
                "reply": now.text,
                "reply_before": then.text,
                "attention": self._attention(opener, now),
            }
            for opener, now, then in zip(self.openers, self.replies(), before, strict=True)
        ]

    def _attention(self, opener: str, reply: Reply) -> dict[str, Any]:
        return attention_of(self.model, self.tokenizer, [opener], reply.ids).to_json()

    def _held_out(self) -> tuple[Sequence[Record], Sequence[Record]]:
        """The conversations for test and validation.

        Of the data the server uses these alone: those it may see. (In a simulation one store, or
        one process that reads the file, serves server and devices.)
        """
        data = self.config.data
        stored = open_tokens(data, self.tokenizer.vocab_size)
        if stored is not None:
            return stored.test, stored.validation
        part = load_partition(data)
        test, validation = (
            tokenize(dialogues, self.tokenizer, HELD_OUT_BYTES)
            for dialogues in (part.test, part.validation)
        )
        return test, validation

    def _pairs(self, records: Sequence[Record], count: int, label: str) -> list[Pair]:
        shape = self.model.shape
        return choose_pairs(records, self.tokenizer, shape.context_tokens, count, label)
