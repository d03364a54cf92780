"""The model that training starts from, what of it changes, and how."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from fedattn.config.section import Count, Positive, Section, Share

Trainable: TypeAlias = str | tuple[str, ...]  # see ModelConfig
_TRAINABLE = r"all|bias_norm|last_[1-9][0-9]?|(ffa_)?lora\([1-9][0-9]{0,2}\)"
_MOST_PATTERNS, _LONGEST_PATTERN = 64, 200  # an instruction's patterns are matched before it counts
# Keys of `train` that are each device's own: they change its memory and time, not its privacy.
LOCAL_KEYS = frozenset({"device", "threads", "clipping", "max_physical_batch", "max_batch_bytes"})
# Of a file or an instruction that anybody may have made: names are listed before anything is read
Layers = Annotated[int, Field(ge=1, le=1000)]


class Architecture(Section):
    """The shape of an attention generator that starts from random weights."""

    vocab_size: Annotated[int, Field(ge=257, le=50256)] = 4096
    d_model: Annotated[int, Field(ge=8, le=1 << 16)] = 192
    heads: Count = 4
    encoder_layers: Layers = 2
    decoder_layers: Layers = 2
    context_tokens: Annotated[int, Field(ge=4, le=1 << 20)] = 64
    reply_tokens: Annotated[int, Field(ge=4, le=1 << 20)] = 48

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError("d_model must be a multiple of heads")
        return self


def _trainable(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(_TRAINABLE, value):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) and v for v in value):
        if len(value) > _MOST_PATTERNS or any(len(v) > _LONGEST_PATTERN for v in value):
            raise ValueError(
                f"at most {_MOST_PATTERNS} patterns of at most {_LONGEST_PATTERN} characters each; "
                "let `*` stand for more"
            )
        return tuple(value)
    raise ValueError(
        "must be `all`, `bias_norm`, `last_N` (decoder layers), `lora(R)` or "
        "`ffa_lora(R)` (R in 1..999), or a list of parameter name patterns such as `decoder.1.*`"
    )


class ModelConfig(Section):
    """Which weights training starts from and which of them it changes."""

    start: str = "public"  # `public` (shipped checkpoint), `random`, or a .safetensors path
    architecture: Architecture | None = None  # with `start: random` alone
    # all; bias_norm: biases, norms, attention bias; last_N: the last N decoder layers with the
    # output norm and bias; lora(R): rank-R changes of every linear layer of attention and
    # feed-forward (Hu et al. 2021), or their factors B alone, ffa_lora(R) (Sun et al. 2024), with
    # bias_norm; or name patterns, as of fnmatch. What is frozen costs no noise and no bytes.
    trainable: Annotated[Trainable, BeforeValidator(_trainable)] = "bias_norm"

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.start == "random") != (self.architecture is not None):
            raise ValueError("set `architecture` with `start: random` and only then")
        return self


class AugmentConfig(Section):
    """Random changes of each drawn example, from the record's own words alone.

    An example is clipped after them, so that sensitivity and epsilon are those of none.
    """

    turn_drop: Share = 0.0  # chance of every context turn but the last to be left out
    truncate: Share = 0.0  # chance to keep a random number of the last context turns alone
    paraphrase: Share = 0.0  # chance of each word with a rule (contraction, spelling) to change


class TrainConfig(Section):
    """Training: on each client, and what the server makes of the mean."""

    rounds: Count = 8
    local_steps: Count = 5  # public, never derived from a data size
    # Public divisor of a step's summed gradient, of one client; where a round is one step, of all
    # clients together. With `unit: client` the examples of a local step.
    expected_batch_size: Count = 64
    optimizer: Literal["sgd", "adam"] = "adam"  # of local steps
    learning_rate: Positive = 5e-3  # of local steps
    # What the server does with the decoded mean (a gradient, where a round is one step)
    server_optimizer: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    server_learning_rate: Positive = 1.0
    # linear: from that rate in the first round to a tenth of it in the last one
    server_schedule: Literal["constant", "linear"] = "constant"
    server_momentum: Share = 0.9  # of fedavgm; beta_1 of fedadam
    server_beta2: Share = 0.99  # of fedadam
    server_adaptivity: Positive = 1e-8  # tau of fedadam, added to the root of the second moment
    weights: Literal["uniform", "examples"] = "uniform"  # of clients in the mean
    # Examples drawn from a conversation in a step; the mean of their gradients is clipped
    draws: Annotated[int, Field(ge=1, le=256)] = 1
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    # bfloat16: matrix products of forward and backward pass in it, norms and sums in float32
    precision: Literal["float32", "bfloat16"] = "float32"
    # How per-conversation gradients are clipped: the same sums, at different cost (clipping/)
    clipping: Literal["book_keeping", "hooks"] = "book_keeping"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0  # torch threads; 0: torch's own choice
    max_physical_batch: Count = 64  # examples computed at once; changes memory, not privacy
    max_batch_bytes: Count | None = None  # memory that they may take, estimated (footprint.py)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.weights != "uniform":
            raise ValueError(
                "weights: weighting clients by their number of examples would send that number "
                "and change each one's sensitivity; use `weights: uniform`"
            )
        if self.clipping != "book_keeping" and self.precision != "float32":
            raise ValueError(
                f"precision: {self.precision} goes with `clipping: book_keeping`, whose norms are "
                "float32 all the same"
            )
        return self
