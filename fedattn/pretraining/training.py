"""Pre-training: AdamW over a curriculum of mixtures of public sources.

Every phase draws context-reply pairs from its sources by weight, without end and without
repeating a source's pair before all of them came up. The rate warms up once and falls by one
cosine over all phases.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedattn.batches import Pair, Record, collate, pair, tokenize
from fedattn.checkpoint import model_sha256, save_model
from fedattn.config import Architecture
from fedattn.data import Dialogue, Turn
from fedattn.errors import DataError
from fedattn.generate import bits_per_byte, choose_pairs
from fedattn.model import AttentionGenerator, count_parameters
from fedattn.pretraining.corpus import Text, read_corpus
from fedattn.pretraining.recipe import Phase, Recipe, SourceName, TrainingConfig
from fedattn.tokens import Tokenizer
from fedattn.train import record_losses

_POOL = 20  # batches that are sorted by length together
_STYLES = ("as it is", "sentence", "sentence", "lower", "casual")
_BETWEEN = tuple(f"{name}.weight" for name in ("query", "key", "value", "out", "up", "down"))
Probes = Mapping[str, Sequence[Pair]]


@dataclass(frozen=True)
class Trained:
    """What came out, for the model card: bits per byte by held-out source, seconds, model hash."""

    sha256: str
    parameters: int
    bytes: int
    pairs: Mapping[str, int]  # available, by source
    steps: int
    scores: Mapping[str, float]
    seconds: float


def styled(dialogue: Dialogue, style: str) -> Dialogue:
    """The dialogue as people type it: as it is, as sentences, in lower case, or carelessly."""
    change = _CHANGES[style]
    turns = tuple(Turn(turn.speaker, change(turn.text)) for turn in dialogue.turns)
    return Dialogue(dialogue.id, turns)


def _same(text: str) -> str:
    return text


def _sentence(text: str) -> str:
    text = _I.sub("I", text)
    text = text[:1].upper() + text[1:]
    return text if text[-1:] in ".?!" else text + "."


def _casual(text: str) -> str:
    return text.lower().replace("'", "").removesuffix(".") or text


_I = re.compile(r"\bi\b(?!\.)")
_CHANGES: Mapping[str, Callable[[str], str]] = {
    "as it is": _same,
    "sentence": _sentence,
    "lower": str.lower,
    "casual": _casual,
}


def records_of(
    texts: Sequence[Text], tokenizer: Tokenizer, rng: np.random.Generator
) -> list[Record]:
    """One record a dialogue, its style drawn; replies as the corpus names them."""
    styles = rng.integers(len(_STYLES), size=len(texts))
    dialogues = [
        styled(text.dialogue, _STYLES[style]) for text, style in zip(texts, styles, strict=True)
    ]
    records = tokenize(dialogues, tokenizer, 512)
    return [
        Record(record.speakers, record.turns, tuple(set(record.replies) & set(text.replies)))
        for record, text in zip(records, texts, strict=True)
    ]


def _endless(records: Sequence[Record], rng: np.random.Generator) -> Iterator[tuple[Record, int]]:
    """Every (record, reply) in a new order, over and over."""
    places = [(row, index) for row, record in enumerate(records) for index in record.replies]
    while True:
        for at in rng.permutation(len(places)):
            row, index = places[at]
            yield records[row], index


def batches(
    phase: Phase,
    sources: Mapping[SourceName, Iterator[tuple[Record, int]]],
    tokenizer: Tokenizer,
    shape: Architecture,
    batch: int,
    rng: np.random.Generator,
) -> Iterator[list[Pair]]:
    """Endless batches of a phase's mixture; a batch holds pairs of alike lengths."""
    names = sorted(phase.mixture)
    weights = np.array([phase.mixture[name] for name in names])
    weights = weights / weights.sum()
    context_tokens = min(phase.context_tokens or shape.context_tokens, shape.context_tokens)
    while True:
        drawn = rng.choice(len(names), _POOL * batch, p=weights)
        places = (next(sources[names[which]]) for which in drawn)
        pairs = [pair(record, i, tokenizer, context_tokens) for record, i in places]
        pairs.sort(key=lambda item: (len(item.reply), len(item.context)))
        for start in rng.permutation(_POOL):
            yield pairs[start * batch : (start + 1) * batch]


def rate_at(step: int, steps: int, config: TrainingConfig) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    scale = min(1.0, (step + 1) / config.warmup) * cosine
    return config.learning_rate * max(scale, config.last_rate)


def pretrain(
    recipe: Recipe,
    corpus: Path,
    out: Path,
    *,
    notes: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = print,
) -> Trained:
    """Train on `corpus`, write `out` in half precision; DataError if a phase finds no text.

    Sets torch's number of threads to `training.threads`, which sums depend on.
    """
    torch.set_num_threads(recipe.training.threads)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    shape, config = recipe.architecture, recipe.training
    tokenizer = Tokenizer(shape.vocab_size)
    records = {}
    for name in sorted({name for phase in config.phases for name in phase.mixture}):
        records[name] = records_of(read_corpus(corpus, name), tokenizer, rng)
        if not any(record.replies for record in records[name]):
            raise DataError(f"{corpus}: source `{name}` has no replies to learn from")
    sources = {name: _endless(records[name], rng) for name in records}
    probes = held_out_pairs(recipe, corpus, tokenizer)
    model = AttentionGenerator(shape)
    optimizers = _optimizers(model, config)
    steps, step, began = sum(phase.steps for phase in config.phases), 0, time.monotonic()
    is_low = config.precision == "bfloat16"
    for phase in config.phases:
        stream = batches(phase, sources, tokenizer, shape, config.batch, rng)
        for _ in range(phase.steps):
            for group in (group for each in optimizers for group in each.param_groups):
                group["lr"] = group["scale"] * rate_at(step, steps, config)
            model.train()
            batch = collate(next(stream), tokenizer, shape.reply_tokens)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
                loss = record_losses(model, batch).mean()
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            for each in optimizers:
                each.step()
            step += 1
            if step % config.probe_every == 0 and step < steps:
                tell(_line(step, phase, scores(model, probes, tokenizer), began))
    half = model.half().float()
    final = scores(half, probes, tokenizer)
    seconds = time.monotonic() - began
    tell(_line(step, config.phases[-1], final, began))
    save_model(out, half, dtype=torch.float16, notes=dict(notes or {}))
    return Trained(
        sha256=model_sha256(half),
        parameters=count_parameters(half),
        bytes=out.stat().st_size,
        pairs={name: sum(len(r.replies) for r in records[name]) for name in records},
        steps=steps,
        scores=final,
        seconds=seconds,
    )


def _optimizers(model: AttentionGenerator, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices between layers, AdamW for the rest; or AdamW."""
    between: list[torch.nn.Parameter] = []
    wide: list[torch.nn.Parameter] = []
    flat: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_between = parameter.dim() == 2 and name.endswith(_BETWEEN)
        (between if is_between else wide if parameter.dim() > 1 else flat).append(parameter)
    if config.muon_scale is None:
        wide, between = wide + between, []
    groups: list[dict[str, Any]] = [
        {"params": wide, "scale": 1.0},
        {"params": flat, "scale": 1.0, "weight_decay": 0.0},
    ]
    rate, decay = config.learning_rate, config.weight_decay
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, config.beta2), weight_decay=decay)
    if not between:
        return [adam]
    group: dict[str, Any] = {"params": between, "scale": config.muon_scale}
    return [
        adam,
        torch.optim.Muon([group], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
    ]


def held_out_pairs(recipe: Recipe, corpus: Path, tokenizer: Tokenizer) -> dict[str, list[Pair]]:
    """Examples of each held-out source, as written, the same ones in every run."""
    out = {}
    for name in recipe.held_out:
        dialogues = [text.dialogue for text in read_corpus(corpus, name, held_out=True)]
        records = tokenize(dialogues, tokenizer, 512)
        count = recipe.training.probe_examples
        out[str(name)] = choose_pairs(
            records, tokenizer, recipe.architecture.context_tokens, count, "pretrain"
        )
    return {name: pairs for name, pairs in out.items() if pairs}


def scores(model: AttentionGenerator, probes: Probes, tokenizer: Tokenizer) -> dict[str, float]:
    """Bits per byte on each held-out source."""
    model.eval()
    return {name: bits_per_byte(model, pairs, tokenizer).bpb for name, pairs in probes.items()}


def _line(step: int, phase: Phase, found: Mapping[str, float], began: float) -> str:
    shown = "  ".join(f"{name} {bpb:.3f}" for name, bpb in found.items())
    seconds = time.monotonic() - began
    return f"step {step:6d}  {phase.name:12s} held out: {shown} bits/byte  {seconds:6.0f} s"
