"""Does the most attended turn matter most? What a reply loses without it, against another turn.

Attention is not an explanation by itself (Jain & Wallace 2019, arXiv 1902.10186; Wiegreffe &
Pinter 2019, arXiv 1908.04626). So it is measured: of each context, one turn at a time is left out,
and the log-likelihood of the same reply compared. Two rules that look at no attention stand
beside: the last turn, and the longest, both of which attention may merely agree with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fedattn.attention_view.compute import context_weights, turns_in
from fedattn.batches import IGNORED, Pair, collate
from fedattn.errors import AttentionError
from fedattn.generate import reply
from fedattn.model import AttentionGenerator
from fedattn.tokens import Tokenizer

Replies: TypeAlias = Literal["real", "own"]
Floats: TypeAlias = npt.NDArray[np.float64]
Rule: TypeAlias = Literal["mean", "rollout", "last", "longest"]
RULES: Final[tuple[Rule, ...]] = ("mean", "rollout", "last", "longest")
RESAMPLES: Final = 2_000


@dataclass(frozen=True, repr=False)
class Ablation:
    """One example, by turn of its context, 0 the oldest in the window; holds no text.

    `falls[k]`: nats that the whole reply loses without turn k. `scores[rule][k]`: how much the
    rule prefers turn k. `tokens` and `bytes` of the reply, its <eos> a token.
    """

    falls: tuple[float, ...]
    scores: dict[Rule, tuple[float, ...]]
    tokens: int
    bytes: int

    def __repr__(self) -> str:
        return "Ablation(<omitted>)"


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What leaving out the turn that `rule` prefers does, against another turn of the context.

    The other turn is a random one: averaged over all of them, so that no draw adds noise.
    """

    rule: Rule
    fall_chosen: float  # mean nats per reply token
    fall_other: float
    difference: Estimate  # of the two, nats per reply token, mean over examples
    bits_per_byte: Estimate  # of the two, over the bytes of all replies
    chosen_hurts_more: Estimate  # chance that the chosen turn's fall is the larger; a tie is half
    chosen_is_last: float  # share of examples


@dataclass(frozen=True)
class Faithfulness:
    """The comparison of each rule on the same examples, with at least two turns each."""

    examples: int
    replies: Replies
    seed: int  # of the bootstrap
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self)


def faithfulness(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    *,
    replies: Replies = "real",
    seed: int = 0,
    max_tokens: int = 40,
) -> Faithfulness:
    """Measure on those of `pairs` whose context has two turns or more.

    `real` scores their replies, `own` the model's greedy ones of at most `max_tokens`. A turn is
    left out of the window as it is: no older turn moves up. AttentionError without an example.
    """
    examples = [
        ablation(model, tokenizer, each)
        for each in _with_replies(model, tokenizer, pairs, replies, max_tokens)
    ]
    if not examples:
        raise AttentionError("no context of two turns or more; give longer conversations")
    return Faithfulness(
        examples=len(examples),
        replies=replies,
        seed=seed,
        comparisons=tuple(compare(examples, rule, seed) for rule in RULES),
    )


@torch.no_grad()
def ablation(model: AttentionGenerator, tokenizer: Tokenizer, example: Pair) -> Ablation:
    """What each turn of `example` is worth to its reply, and what each rule thinks of it."""
    turns = np.array(turns_in(example.context, tokenizer))
    count = int(turns[-1]) + 1
    without = [
        [token for token, turn in zip(example.context, turns, strict=True) if turn != left_out]
        for left_out in range(count)
    ]
    variants = [Pair(context, example.reply) for context in (example.context, *without)]
    data = collate(variants, tokenizer).to(next(model.parameters()).device)
    nats = F.cross_entropy(
        model(data.context, data.tokens).transpose(1, 2).float(),
        data.targets,
        ignore_index=IGNORED,
        reduction="none",
    ).sum(1, dtype=torch.float64)
    scores: dict[Rule, tuple[float, ...]] = {
        "last": tuple(map(float, range(count))),
        "longest": tuple(map(float, np.bincount(turns))),
    }
    for method in ("mean", "rollout"):
        weights = context_weights(model, example.context, example.reply, method=method)
        scores[method] = tuple(np.bincount(turns, weights.sum(0).numpy()).tolist())
    return Ablation(
        falls=tuple((nats[1:] - nats[0]).tolist()),
        scores=scores,
        tokens=len(example.reply),
        bytes=len(tokenizer.decode(example.reply).encode()),
    )


def compare(examples: Sequence[Ablation], rule: Rule, seed: int = 0) -> Comparison:
    """`rule` on `examples`, of two turns or more each; of equal turns it prefers the newest."""
    chosen, other, wins, is_last = [], [], [], []
    for each in examples:
        scores, last = each.scores[rule], len(each.falls) - 1
        best = max(range(last + 1), key=lambda turn: (scores[turn], turn))
        rest = [fall for turn, fall in enumerate(each.falls) if turn != best]
        chosen.append(each.falls[best])
        other.append(math.fsum(rest) / len(rest))
        wins.append(
            sum((fall < chosen[-1]) + 0.5 * (fall == chosen[-1]) for fall in rest) / len(rest)
        )
        is_last.append(best == last)
    tokens = np.array([each.tokens for each in examples], np.float64)
    sizes = np.array([each.bytes for each in examples], np.float64)
    top, rest_mean, won = (np.array(values) for values in (chosen, other, wins))
    apart = (top - rest_mean) / tokens
    bits = (top - rest_mean) / math.log(2)
    return Comparison(
        rule=rule,
        fall_chosen=float((top / tokens).mean()),
        fall_other=float((rest_mean / tokens).mean()),
        difference=_estimate(lambda rows: apart[rows].mean(-1), len(apart), seed),
        bits_per_byte=_estimate(
            lambda rows: bits[rows].sum(-1) / np.maximum(sizes[rows].sum(-1), 1), len(apart), seed
        ),
        chosen_hurts_more=_estimate(lambda rows: won[rows].mean(-1), len(apart), seed),
        chosen_is_last=float(np.mean(is_last)),
    )


def _estimate(
    statistic: Callable[[npt.NDArray[np.int64]], Floats], count: int, seed: int
) -> Estimate:
    """`statistic` of rows (..., n) of examples: of all, and its percentiles over resamples."""
    rows = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile(statistic(rows), (2.5, 97.5))
    return Estimate(float(statistic(np.arange(count))), float(low), float(high))


def _with_replies(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    replies: Replies,
    max_tokens: int,
) -> Iterator[Pair]:
    for each in pairs:
        if turns_in(each.context, tokenizer)[-1] == 0:
            continue
        if replies == "real":
            yield each
            continue
        ids = list(reply(model, tokenizer, each.context, max_tokens=max_tokens).ids)
        # (one that was cut short has no end to score)
        yield Pair(each.context, ids if len(ids) == max_tokens else [*ids, tokenizer.eos])
