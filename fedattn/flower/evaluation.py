"""What the server measures, on conversations that it may see."""

from __future__ import annotations

from collections.abc import Sequence

from fedattn.batches import Pair, tokenize
from fedattn.config import Config
from fedattn.data import Dialogue, load_partition
from fedattn.generate import OPENERS, Quality, bits_per_byte, choose_pairs, reply_to
from fedattn.model import AttentionGenerator
from fedattn.tokens import Tokenizer


class Evaluation:
    """Bits per byte of held-out replies, and replies to openers of our own."""

    def __init__(self, config: Config, model: AttentionGenerator) -> None:
        self.config, self.model = config, model
        self.tokenizer = Tokenizer(model.shape.vocab_size)
        # Of the data the server uses the held-out conversations alone: those it may see. (In a
        # simulation one process reads the file for server and devices.)
        held_out = load_partition(config.data)
        self.test = self._pairs(held_out.test, config.eval.examples, "test")
        self.progress = self._pairs(
            held_out.validation, config.eval.progress_examples, "validation"
        )

    def quality(self, pairs: Sequence[Pair]) -> Quality:
        """Bits per byte of `pairs` under the model as it is now."""
        self.model.eval()
        return bits_per_byte(self.model, pairs, self.tokenizer)

    @property
    def openers(self) -> tuple[str, ...]:
        """What sample replies answer."""
        return OPENERS[: self.config.eval.samples]

    def replies(self) -> list[str]:
        """Greedy replies to openers of our own: no held-out person's words enter a report."""
        return [reply_to(self.model, self.tokenizer, [opener]).text for opener in self.openers]

    def _pairs(self, dialogues: Sequence[Dialogue], count: int, label: str) -> list[Pair]:
        records = tokenize(dialogues, self.tokenizer, self.config.data.max_reply_bytes)
        shape = self.model.shape
        return choose_pairs(records, self.tokenizer, shape.context_tokens, count, label)
