"""The pre-training recipe: every key of configs/pretrain.yaml, its type and its bounds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedattn.config import Architecture, parse_mapping, validated
from fedattn.config.reading import apply_override
from fedattn.config.section import Count, Positive, Rate, Section, Share
from fedattn.errors import ConfigError

SourceName = Literal[
    "plays", "speeches", "novel", "wordnet", "aiml", "chatterbot", "talk", "sampled"
]


class SampledConfig(Section):
    """Text drawn from textgenrnn's public weights; one shard a seed."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    characters: Count  # drawn for each shard
    streams: Count = 512
    window: Annotated[int, Field(ge=1, le=40)] = 33  # characters read anew, of the 40 trained on
    stride: Count = 8  # characters drawn before the window is read again
    turns: Count = 6  # of a dialogue, at least
    longest_turn: Annotated[int, Field(ge=20)] = 140  # characters
    coldest: Positive = 0.5  # temperatures are uniform between these
    hottest: Positive = 1.0

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.hottest < self.coldest:
            raise ValueError("hottest must be at least coldest")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: every shard needs a seed of its own")
        return self


class FilterConfig(Section):
    """Which turns are kept; markup, blocked words and forum talk go in any case (filters.py)."""

    min_bytes: Count = 2
    max_bytes: Count = 400
    max_copies: Count = 30  # of the same reply, case and punctuation aside
    min_word_count: Count = 5  # a sampled word is believed if all the text has it as often


class Phase(Section):
    """Steps on one mixture: `mixture` weighs sources, the share of pairs drawn from each."""

    name: Annotated[str, Field(min_length=1)]
    steps: Count
    mixture: Annotated[dict[SourceName, Positive], Field(min_length=1)]
    # the model's own, or fewer: the encoder is most of the cost, and short contexts teach as much
    context_tokens: Annotated[int, Field(ge=4)] | None = None


class TrainingConfig(Section):
    """AdamW, with Muon where asked, with warm-up and a cosine over all phases."""

    phases: Annotated[list[Phase], Field(min_length=1)]
    batch: Count = 64  # context-reply pairs
    learning_rate: Positive = 1.5e-3
    warmup: Count = 200  # steps
    # Muon's rate for the matrices between layers, in learning rates; null: AdamW alone
    muon_scale: Positive | None = None
    last_rate: Share = 0.02  # share of the learning rate that the cosine ends at
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: Positive = 1.0
    beta2: Share = 0.98
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    threads: Count = 1
    probe_every: Count = 500  # steps between looks at held-out public text
    probe_examples: Count = 400  # of each held-out source


class Recipe(Section):
    """Everything that decides the corpus and the checkpoint."""

    seed: Annotated[int, Field(ge=0)] = 1
    sources: Annotated[list[SourceName], Field(min_length=1)]
    held_out: dict[SourceName, Rate] = Field(default_factory=dict)  # share that is never trained on
    sampled: SampledConfig | None = None
    speeches_since: Count = 1945
    talk_dialogues: Count = 12000  # drawn from talk.yaml
    piece_bytes: Count = 140  # prose is cut at sentence ends to about this
    filters: FilterConfig = Field(default_factory=FilterConfig)
    architecture: Architecture = Field(default_factory=Architecture)
    training: TrainingConfig

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        for phase in self.training.phases:
            for name in phase.mixture:
                if name not in self.sources:
                    raise ValueError(
                        f"training.phases: phase {phase.name} draws from `{name}`, which is not "
                        "among `sources`; add it there or drop it here"
                    )
        for name in self.held_out:
            if name not in self.sources:
                raise ValueError(f"held_out: `{name}` is not among `sources`")
        if ("sampled" in self.sources) != (self.sampled is not None):
            raise ValueError("set `sampled` with the source `sampled` and only then")
        return self

    def corpus_sha256(self) -> str:
        """Names the corpus: what of the recipe decides it, training left out."""
        raw = self.model_dump(mode="json", exclude={"training", "architecture"})
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file with `a.b=c` overrides; ConfigError names key, value and remedy."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as UTF-8 text ({type(error).__name__}); see "
            "configs/pretrain.yaml"
        ) from None
    raw = parse_mapping(text, where=str(path), example="configs/pretrain.yaml")
    for override in overrides:
        apply_override(raw, override)
    return validated(Recipe, raw, where=str(path))
