"""A smaller model of a released one, and what that changed: bytes, speed, bits per byte.

What is computed from a released model alone costs no further privacy (post-processing; Dwork &
Roth 2014, proposition 2.1): every epsilon of the run's report holds for the result as it is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from fedattn.batches import Pair
from fedattn.compressed import prune, to_bytes
from fedattn.config import config_from_dict
from fedattn.decoding import Decoding
from fedattn.dialogue_generator import DialogueGenerator, Numbered
from fedattn.errors import ConfigError, RunError
from fedattn.export import write_release
from fedattn.flower.evaluation import Evaluation
from fedattn.found_model import FoundModel, find_model
from fedattn.generate import OPENERS, bits_per_byte, context_of
from fedattn.sampling import GREEDY, next_tokens

POST_PROCESSING: Final = (
    "post-processing of a released model costs no privacy: the epsilons of the run hold as they are"
)
_TOKENS: Final = 40  # of each timed reply
_TIMES: Final = 3  # the best of them counts


@dataclass(frozen=True)
class Measured:
    """One model: its file, its speed at one conversation, its quality (None: not measured)."""

    file_bytes: int
    tokens_per_s: float
    bpb: float | None


@dataclass(frozen=True)
class Comparison:
    """Before and after, measured in turns in one process with `threads` torch threads."""

    before: Measured
    after: Measured
    threads: int
    examples: int  # replies of validation users that bits per byte is over


def compress(
    found: FoundModel, out: Path, *, share: float, is_int8: bool, examples: int | None
) -> Comparison:
    """Write a compressed model of `found` to the new folder `out` and measure both.

    share: of weights that become 0, in [0, 1). examples: replies of the run's validation users to
    score; None: as many as the run did while it trained; 0, or a model without a run: none.
    ConfigError if there is nothing to do, RunError if `out` is there or `found` is compressed.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"--prune {share}: must be at least 0 and below 1")
    if share == 0 and not is_int8:
        raise ConfigError("nothing to do: give --prune, --int8 or both")
    if found.released is not None and found.released.changes:
        raise RunError(f"{found.where}: is compressed already; compress what it was made of")
    pairs = validation_pairs(found, examples)
    smaller = copy.deepcopy(found.model)
    prune(smaller, share)
    percent = f"{100 * share:.6g}"
    changes = [
        *([f"pruned: the {percent}% smallest weights of all matrices are 0"] if share else ()),
        *(["matrices rounded to 8-bit integers, one scale a row"] if is_int8 else ()),
        POST_PROCESSING,
    ]
    write_release(found, out, to_bytes(smaller, is_int8=is_int8), changes=changes)
    models = [found, find_model(out)]
    generators = [DialogueGenerator(each) for each in models]
    speeds = tokens_per_s(generators)
    before, after = (
        Measured(
            file_bytes=each.file.stat().st_size,
            tokens_per_s=speed,
            bpb=bits_per_byte(generator.model, pairs, generator.tokenizer).bpb if pairs else None,
        )
        for each, generator, speed in zip(models, generators, speeds, strict=True)
    )
    return Comparison(before, after, torch.get_num_threads(), len(pairs))


def validation_pairs(found: FoundModel, examples: int | None) -> list[Pair]:
    """Replies of validation users, the first of them those that the run's progress was over.

    DataError if the run's conversations are not on this machine.
    """
    if found.report is None or examples == 0:
        return []
    config = config_from_dict(found.report.config)
    if examples is not None:
        measured = config.eval.model_copy(update={"progress_examples": examples})
        config = config.model_copy(update={"eval": measured})
    return Evaluation(config, found.model).progress


def tokens_per_s(generators: Sequence[DialogueGenerator]) -> list[float]:
    """Tokens a second of each at one conversation; the best of several times.

    All read the greedy replies of the first: a model whose own end sooner would read a context for
    fewer tokens. They take turns, so that a busy machine is busy for all alike.
    """
    replies = [_inputs(generators[0], opener) for opener in OPENERS]
    count = sum(map(len, replies))
    best = [0.0] * len(generators)
    for _ in range(_TIMES):
        for place, generator in enumerate(generators):
            began = time.perf_counter()
            for opener, ids in zip(OPENERS, replies, strict=True):
                _read(generator, opener, ids)
            best[place] = max(best[place], count / (time.perf_counter() - began))
    return best


def _inputs(generator: DialogueGenerator, opener: str) -> list[int]:
    """What is read of a greedy reply while it is made: <bos>, then all that something follows."""
    (made,) = generator.replies([Numbered(0, (opener,))], sampling=GREEDY, max_tokens=_TOKENS)
    return [generator.tokenizer.bos, *made.ids][:_TOKENS]


@torch.no_grad()
def _read(generator: DialogueGenerator, opener: str, ids: Sequence[int]) -> None:
    """Choose a greedy token after each of `ids`, as `growing.grow` does for one conversation."""
    model, tokenizer = generator.model, generator.tokenizer
    context = context_of([opener], tokenizer, model.shape.context_tokens)
    decoding = Decoding(model, model.encode(torch.tensor([context])), len(ids))
    none = torch.zeros(1, tokenizer.size, dtype=torch.bool)
    for token in ids:
        logits = decoding.step(torch.tensor([token]))
        next_tokens(logits, GREEDY, said=none, barred=none, uniforms=(0.0,))
