"""The keys of a config, their types and bounds, and which combinations are impossible."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)

from fedattn import modulus
from fedattn.errors import UpdateError

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Stage = Literal["advertise", "share", "upload", "confirm", "unmask"]


def _bits(value: object) -> object:
    if value == "auto" or (type(value) is int and 8 <= value <= 32):
        return value
    raise ValueError("must be `auto` or a whole number in 8..32")


class Section(BaseModel):
    """A block of the config: unknown keys and quiet type changes are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataConfig(Section):
    """Where conversations come from and who owns them (DESIGN section 3)."""

    source: Literal["chitchat", "jsonl"] = "chitchat"
    path: str | None = None  # of the JSONL file; with source: jsonl alone
    skip_bad: bool = False  # leave refused JSONL lines out instead of stopping
    salt: Annotated[str, Field(min_length=1)] = "fedattn"  # decides owners, splits, thinning
    clients: Count = 8  # owners are spread over this many silos by a salted hash
    validation_share: Share = 0.1  # of users
    test_share: Share = 0.1  # of users
    min_turns: Annotated[int, Field(ge=2)] = 4
    max_reply_bytes: Count = 512
    keep_rate: Rate = 1.0  # a conversation trains with this probability, by its own hash
    thin: dict[str, Rate] = Field(default_factory=dict)  # a lower keep_rate for one owner

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.source == "jsonl") != (self.path is not None):
            raise ValueError("set `path` with `source: jsonl` and only then")
        if self.validation_share + self.test_share > 0.5:
            raise ValueError("validation_share + test_share must be at most 0.5")
        return self


class Architecture(Section):
    """The shape of an attention generator that starts from random weights."""

    vocab_size: Annotated[int, Field(ge=257, le=50256)] = 4096
    d_model: Annotated[int, Field(ge=8)] = 192
    heads: Count = 4
    encoder_layers: Count = 2
    decoder_layers: Count = 2
    context_tokens: Annotated[int, Field(ge=4)] = 64
    reply_tokens: Annotated[int, Field(ge=4)] = 48

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError("d_model must be a multiple of heads")
        return self


class ModelConfig(Section):
    """Which weights training starts from and which of them it changes."""

    start: str = "public"  # `public` (shipped checkpoint), `random`, or a .safetensors path
    architecture: Architecture | None = None  # with `start: random` alone
    trainable: Literal["all", "bias_norm"] = "bias_norm"

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.start == "random") != (self.architecture is not None):
            raise ValueError("set `architecture` with `start: random` and only then")
        return self


class TrainConfig(Section):
    """Local training on each client."""

    rounds: Count = 8
    local_steps: Count = 5  # public, never derived from a data size
    expected_batch_size: Count = 64  # public divisor of each step's summed gradient
    optimizer: Literal["sgd", "adam"] = "adam"
    learning_rate: Positive = 5e-3
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0  # torch threads; 0: torch's own choice
    max_physical_batch: Count = 64  # records computed at once; changes memory, not privacy


class PrivacyConfig(Section):
    """What is protected and by how much (DESIGN section 4)."""

    unit: Literal["conversation", "none"]
    noise: Literal["local", "none"]
    sampling_rate: Rate = 0.1  # public Poisson rate per conversation and step
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    clip_norm: Positive = 0.5
    epsilon_budget: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_units: Count = 10_000  # declared public bound on the number of units

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.unit == "none") != (self.noise == "none"):
            raise ValueError("`unit: none` goes with `noise: none` and only with it")
        if self.unit == "none":
            if self.epsilon_budget is not None:
                raise ValueError(
                    "`epsilon_budget` cannot hold with `unit: none` (epsilon is infinite); "
                    "drop it or choose `unit: conversation`"
                )
            return self
        if self.noise_multiplier <= 0:
            raise ValueError("noise_multiplier must be above 0; for no privacy say `unit: none`")
        if self.epsilon_budget is None:
            raise ValueError("epsilon_budget is needed, so that training knows when to stop")
        if self.delta > 1 / (10 * self.max_units):
            raise ValueError(
                f"delta {self.delta:g} is above 1/(10 max_units) = "
                f"{1 / (10 * self.max_units):g}; lower delta"
            )
        return self


class SecAggConfig(Section):
    """Secure aggregation and the codec before it (DESIGN section 5)."""

    threshold: Count  # survivors needed to unmask
    max_colluding: Annotated[int, Field(ge=0)] = 0  # clients that may share all with the server
    dropout_share: Share = 0.05  # of clients that a round must survive losing
    graph: Literal["auto", "complete"] = "auto"  # auto: random neighbours where they halve masks
    clip_range: Positive = 0.5  # each coordinate of an update is clipped to [-r, r]
    grid_scale: Positive = 1048576.0  # grid steps per unit
    # The sum is taken modulo 2^this; `auto`: the fewest bits in 8..32 that it cannot wrap
    modulus_bits: Annotated[int | Literal["auto"], PlainValidator(_bits)] = "auto"
    stage_timeout_s: Positive = 600.0  # a client silent for longer at one stage has dropped out


class EvalConfig(Section):
    """What the server measures on data it may see."""

    examples: Count = 1500  # held-out examples behind bpb_before and bpb_after
    progress_examples: Annotated[int, Field(ge=0)] = 200  # validation examples per round
    samples: Annotated[int, Field(ge=0)] = 3  # replies shown at the end


class Fault(Section):
    """A simulated failure: `clients` devices vanish at `stage` of `round`.

    They handle that stage's message (an upload is spent), but no reply of theirs arrives from
    then on in this round.
    """

    round: Count
    stage: Stage = "upload"
    clients: Count


class Config(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    # For tests: makes all randomness predictable, so NOT PRIVATE.
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    server_key: str | None = None  # path of the server's Ed25519 key; none: made for this run
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    privacy: PrivacyConfig
    secagg: SecAggConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)
    faults: list[Fault] = Field(default_factory=list)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        n, t, c = self.data.clients, self.secagg.threshold, self.secagg.max_colluding
        if t > n:
            raise ValueError(f"secagg.threshold {t} is above data.clients {n}; lower it")
        if c >= n:
            raise ValueError(f"secagg.max_colluding {c} must be below data.clients {n}")
        if 2 * t <= n + c:
            raise ValueError(
                f"secagg.threshold {t} must satisfy 2t > n + c = {n + c}, or two disjoint "
                f"quorums could unmask; use {(n + c) // 2 + 1} or more"
            )
        left = n - int(self.secagg.dropout_share * n)
        if t > left:
            raise ValueError(
                f"secagg.threshold {t} is above the {left} clients that dropout_share "
                f"{self.secagg.dropout_share:g} leaves; lower one of them"
            )
        try:
            _ = self.modulus_bits
        except UpdateError as error:
            raise ValueError(f"secagg: {error}") from None
        for fault in self.faults:
            if fault.round > self.train.rounds:
                raise ValueError(
                    f"faults: round {fault.round} is above train.rounds {self.train.rounds}"
                )
            if fault.clients > n:
                raise ValueError(f"faults: {fault.clients} clients are above data.clients {n}")
        return self

    @property
    def is_private(self) -> bool:
        """Whether a privacy guarantee holds at all: noise, and no seed anyone could repeat."""
        return self.privacy.unit != "none" and self.seed is None

    @property
    def modulus_bits(self) -> int:
        """b: a round's sum is taken modulo 2^b, `secagg.modulus_bits` with `auto` resolved."""
        secagg = self.secagg
        bound = modulus.clipped_bound(self.data.clients, secagg.clip_range, secagg.grid_scale)
        if secagg.modulus_bits == "auto":
            return modulus.required_bits(bound)
        modulus.require_bits(secagg.modulus_bits, bound)
        return secagg.modulus_bits

    def canonical_json(self) -> str:
        """The config as JSON with sorted keys: what is hashed, signed and audited."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def sha256(self) -> str:
        """Hex digest of `canonical_json`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()
