"""A trained generator to talk to from Python: `fedattn.load(path).reply(["hi"]).text`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedattn.batches import Pair
from fedattn.errors import DataError, TokenError
from fedattn.found_model import FoundModel, find_model
from fedattn.generate import Quality, Reply, bits_per_byte, context_of, reply
from fedattn.growing import GrowingReply, grow, growing_reply
from fedattn.sampling import Sampling, stream_of
from fedattn.tokens import Tokenizer

if TYPE_CHECKING:
    from fedattn.attention_view.attention_map import AttentionMap


class Numbered(NamedTuple):
    """The turns of a conversation, oldest first, and the number that its randomness goes by."""

    number: int
    turns: tuple[str, ...]


class Made(NamedTuple):
    """A reply without where it looked; `is_finished` unless `max_tokens` cut it off."""

    text: str
    ids: tuple[int, ...]
    is_finished: bool


class DialogueGenerator:
    """A model with its tokenizer, and what is known of it.

    `turns` are texts, oldest first, by two speakers in turn; the last one is replied to. What
    does not fit in the model's window is cut off at the old end. Sampling: `fedattn.sampling`;
    a `seed` makes a reply repeatable, None takes new random numbers.

    Errors: DataError for turns, ConfigError for a setting out of bounds.
    """

    def __init__(self, found: FoundModel) -> None:
        self.found = found
        self.model = found.model.eval()
        self.tokenizer = Tokenizer(self.model.shape.vocab_size)

    def __repr__(self) -> str:
        return f"DialogueGenerator({str(self.found.where)!r})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said loudly about this model, e.g. that it is not private."""
        return self.found.notes

    def reply(
        self,
        turns: Sequence[str],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        max_tokens: int = 40,
        seed: int | None = None,
    ) -> Reply:
        """The reply to the last of `turns`, greedy unless told, and the attention behind it."""
        return reply(
            self.model,
            self.tokenizer,
            self._context(turns),
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_p, repetition_penalty),
            seed=seed,
        )

    def stream(
        self,
        turns: Sequence[str],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        max_tokens: int = 40,
        seed: int | None = None,
        number: int = 0,
    ) -> GrowingReply:
        """The pieces of the same reply's text while it is made; joined they are its text.

        number: which reply it is, of several that one seed makes. The text is the model's: print
        it with `fedattn.printable.printable`.
        """
        return growing_reply(
            self.model,
            self.tokenizer,
            self._context(turns),
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_p, repetition_penalty),
            seed=seed,
            number=number,
        )

    def replies(
        self,
        conversations: Iterable[Numbered],
        *,
        sampling: Sampling,
        max_tokens: int = 40,
        seed: int | None = None,
    ) -> list[Made]:
        """A reply to each, computed together; what `reply` says to each alone, if greedy.

        The randomness of each depends on `seed` and its `number` alone. (Logits agree to 1e-5:
        where two tokens are that close, the choice may differ.)
        """
        given = list(conversations)
        if not given:
            return []
        ids: list[list[int]] = [[] for _ in given]
        steps = grow(
            self.model,
            self.tokenizer,
            [self._context(each.turns) for each in given],
            max_tokens=max_tokens,
            sampling=sampling,
            numbers=[stream_of(seed, each.number) for each in given],
        )
        for step in steps:
            for row, token in zip(ids, step, strict=True):
                if token is not None:
                    row.append(token)
        return [self._made(row, max_tokens) for row in ids]

    def attention(
        self,
        turns: Sequence[str],
        reply: str | Reply | GrowingReply,
        *,
        layer: int | None = None,
        head: int | None = None,
        method: Literal["mean", "rollout"] = "mean",
    ) -> AttentionMap:
        """Where each token of `reply` looked in `turns`: as `attention_view.compute`."""
        from fedattn.attention_view.compute import attention_of

        self._context(turns)  # refuses what is no conversation
        ids = self._ids(reply, "reply") if isinstance(reply, str) else reply.ids
        return attention_of(
            self.model, self.tokenizer, turns, ids, layer=layer, head=head, method=method
        )

    def bits_per_byte(self, pairs: Iterable[tuple[Sequence[str], str]]) -> Quality:
        """How many bits the model needs for the replies in `pairs` of turns and reply, per byte.

        Lower is better. The end of each reply is scored with it; without pairs it is NaN.
        """
        scored = [
            Pair(self._context(turns), [*self._encoded(text, "reply"), self.tokenizer.eos])
            for turns, text in pairs
        ]
        return bits_per_byte(self.model, scored, self.tokenizer)

    def _made(self, ids: list[int], max_tokens: int) -> Made:
        return Made(self.tokenizer.decode(ids).strip(), tuple(ids), len(ids) < max_tokens)

    def _context(self, turns: Sequence[str]) -> list[int]:
        if isinstance(turns, str):
            raise DataError("turns: is one text, must be a list of them; write [text]")
        if not turns:
            raise DataError("turns: there is none; the last one is what is replied to")
        for index, text in enumerate(turns):
            self._encoded(text, f"turns[{index}]")
        return context_of(turns, self.tokenizer, self.model.shape.context_tokens)

    def _encoded(self, text: object, where: str) -> list[int]:
        if not isinstance(text, str):
            raise DataError(f"{where}: must be a text")
        if not text.strip():
            raise DataError(f"{where}: is empty; remove it or fill it in")
        return self._ids(text, where)

    def _ids(self, text: str, where: str) -> list[int]:
        try:
            return self.tokenizer.encode(text)
        except TokenError:  # its message has no place
            raise DataError(f"{where}: holds half a character; remove it") from None


def load(path: str | PathLike[str]) -> DialogueGenerator:
    """The generator in `path`: a run directory, what export or compress wrote, or a checkpoint.

    A run directory is one with a finished report; a checkpoint is a .safetensors file; "public"
    is the model that ships with fedattn. RunError or ModelError says what is wrong: no such path,
    an unfinished run, a model file that is not the one its report names.
    """
    return DialogueGenerator(find_model(path))
