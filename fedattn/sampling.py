"""Which token comes next: pure functions on logits (B, V), float.

Greedy, or drawn from softmax(logits / temperature) cut to its nucleus (Holtzman et al. 2020,
arXiv 1904.09751, section 3.1), after a penalty on what was said already (Keskar et al. 2019,
arXiv 1909.05858, section 4.1). Randomness is an argument: one uniform number a row and token, so
that what a row says depends on its own numbers, whatever it is computed together with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fedattn.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; ConfigError names the field that is out of bounds.

    temperature: at least 0; 0 is greedy, and `top_p` then changes nothing. top_p: in (0, 1]; the
    share of probability that the nucleus holds at least. repetition_penalty: in 1..100; 1 changes
    nothing, greater ones make the reply's own tokens less likely to come again.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, is_fit, bounds in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0 and finite"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 1 <= self.repetition_penalty <= 100, "in 1..100"),
        ):
            if not is_fit:  # NaN is in no bounds
                raise ConfigError(f"{name}: {getattr(self, name)} must be {bounds}")

    @property
    def is_greedy(self) -> bool:
        """Whether no random number matters."""
        return self.temperature == 0


GREEDY: Final = Sampling()


def as_typed(error: ConfigError, sign: str) -> str:
    """What `error` says of a field, by the name that a person typed: an option or a command.

    >>> as_typed(ConfigError("top_p: 0.0 must be above 0 and at most 1"), "--")
    '--top-p: 0.0 must be above 0 and at most 1'
    """
    name, colon, rest = str(error).partition(":")
    return f"{sign}{name.replace('_', '-')}{colon}{rest}"


def stream_of(seed: int | None, number: int = 0) -> random.Random:
    """The uniform numbers of one reply: they depend on both alone; without a seed they are new."""
    if seed is None:
        return random.Random()  # noqa: S311  science, not privacy: a reply is public
    return random.Random(f"fedattn/v1/reply/{seed}/{number}")  # noqa: S311


def next_tokens(
    logits: Tensor,
    sampling: Sampling,
    *,
    said: Tensor,
    barred: Tensor,
    uniforms: Sequence[float],
) -> Tensor:
    """The next token (B,), int64, of each row of `logits` (B, V).

    said: bool (B, V), what each row's reply holds. barred: bool (B, V) or (V,), what must not
    come; each row leaves something. uniforms: B numbers in [0, 1).
    """
    logits = penalised(logits.float(), said, sampling.repetition_penalty)
    logits = logits.masked_fill(barred, -math.inf)
    if sampling.is_greedy:
        return logits.argmax(1)
    # the largest goes to 0 before the division: a temperature near 0 must not make inf - inf
    scores = (logits - logits.amax(1, keepdim=True)).double() / sampling.temperature
    return drawn(nucleus(scores.softmax(1), sampling.top_p), uniforms)


def penalised(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """`logits` (B, V) with those of `said` tokens, bool (B, V), less likely; 1 changes nothing.

    Keskar et al. divide a logit by the penalty, which makes a negative one more likely; it is
    multiplied instead.

    >>> penalised(torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[True, True, False]]), 2.0)
    tensor([[ 1., -4.,  1.]])
    """
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(said, lower, logits)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """`probabilities` (B, V) cut to the smallest set of the likeliest that holds `top_p` or more.

    The rest is 0 and what stays sums to 1. Of equally likely tokens those of smaller ids stay.

    >>> nucleus(torch.tensor([[0.5, 0.125, 0.375]]), 0.5)
    tensor([[1., 0., 0.]])
    """
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    sums = ordered.double().cumsum(1)
    # what likelier tokens hold: not sums - ordered, whose rounding keeps one more at a tie
    before = F.pad(sums[:, :-1], (1, 0))
    kept = (before < top_p).gather(1, order.argsort(1))
    cut = torch.where(kept, probabilities, 0.0)
    return cut / cut.sum(1, keepdim=True)


def drawn(probabilities: Tensor, uniforms: Sequence[float]) -> Tensor:
    """One token (B,) of each row of `probabilities` (B, V), where its sum passes the uniform.

    A token of probability 0 never comes.
    """
    sums = probabilities.double().cumsum(1)
    points = torch.tensor(list(uniforms), dtype=torch.float64, device=sums.device)[:, None]
    # of all that the row holds, so that rounding leaves no gap above the last token
    places = torch.searchsorted(sums, points * sums[:, -1:], right=True)[:, 0]
    last = probabilities.shape[1] - 1 - (probabilities > 0).flip(1).int().argmax(1)
    return torch.minimum(places, last)
