"""The keys of a config, their types and bounds, and which combinations are impossible."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from fedattn import modulus
from fedattn.config.data import DataConfig
from fedattn.config.protection import PrivacyConfig
from fedattn.config.section import MOST_STEPS, Count, Positive, Section, Share
from fedattn.config.training import LOCAL_KEYS, ModelConfig, TrainConfig
from fedattn.errors import ConfigError, UpdateError

Stage = Literal["advertise", "share", "upload", "confirm", "unmask"]
PLAIN_GRID_SCALE = 2.0**20


def _bits(value: object) -> object:
    if value == "auto" or (type(value) is int and 8 <= value <= 32):
        return value
    raise ValueError("must be `auto` or a whole number in 8..32")


def _workers(value: object) -> object:
    if value == "auto" or (type(value) is int and 0 <= value <= 256):
        return value
    raise ValueError("must be `auto` or a whole number in 0..256")


def _scale(value: object) -> object:
    if value == "auto":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError("must be `auto` or a number above 0")


class SecAggConfig(Section):
    """Secure aggregation and the codec before it (DESIGN section 5)."""

    threshold: Count  # survivors needed to unmask
    max_colluding: Annotated[int, Field(ge=0)] = 0  # clients that may share all with the server
    dropout_share: Share = 0.05  # of clients that a round must survive losing
    graph: Literal["auto", "complete"] = "auto"  # auto: random neighbours where they halve masks
    # Each coordinate of an update is clipped to [-r, r]; where noise is added to the sum, the
    # update's norm is clipped instead (privacy.clip_norm) and this is not used.
    clip_range: Positive = 0.5
    # Grid steps per unit; `auto`: 2^20, or as fine as noise on the sum needs (mechanism.py)
    grid_scale: Annotated[float | Literal["auto"], PlainValidator(_scale)] = "auto"
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
    # arithmetic: simulations alone; the same sums without keys, shares and masks, and said so
    secure_aggregation: Literal["masked", "arithmetic"] = "masked"
    # Processes of the embedded engine; `auto`: one a core, 0: this one. Changes no result.
    workers: Annotated[int | Literal["auto"], PlainValidator(_workers)] = "auto"
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    privacy: PrivacyConfig
    secagg: SecAggConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)
    faults: list[Fault] = Field(default_factory=list)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        self._check_quorum()
        self._check_round()
        n = self.data.clients
        for fault in self.faults:
            if self.secure_aggregation == "arithmetic" and fault.stage in ("share", "unmask"):
                raise ValueError(
                    f"faults: stage {fault.stage} is skipped with `secure_aggregation: "
                    "arithmetic`; use advertise, upload or confirm"
                )
            if fault.round > self.train.rounds:
                raise ValueError(
                    f"faults: round {fault.round} is above train.rounds {self.train.rounds}"
                )
            if fault.clients > n:
                raise ValueError(f"faults: {fault.clients} clients are above data.clients {n}")
        return self

    def _check_quorum(self) -> None:
        n, t, c = self.data.clients, self.secagg.threshold, self.secagg.max_colluding
        if t > n:
            raise ValueError(f"secagg.threshold {t} is above data.clients {n}; lower it")
        if c >= n:
            raise ValueError(f"secagg.max_colluding {c} must be below data.clients {n}")
        if self.privacy.client_rate < 1:
            expected = n * self.privacy.client_rate * (1 - self.secagg.dropout_share)
            if t > expected:
                raise ValueError(
                    f"secagg.threshold {t} is above the {expected:g} survivors expected of "
                    "client_rate * data.clients after dropouts; lower it or raise client_rate"
                )
            if t < c + 2:
                raise ValueError(
                    f"secagg.threshold {t} must be at least max_colluding + 2 = {c + 2}"
                )
            return
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

    def _check_round(self) -> None:
        privacy, train = self.privacy, self.train
        if privacy.noise == "distributed" and self.secagg.max_colluding < 1:
            raise ValueError(
                "secagg.max_colluding must be at least 1 with `noise: distributed`: every "
                "participant knows its own share of the noise"
            )
        if self.is_one_step and train.local_steps != 1:
            raise ValueError(
                f"train.local_steps {train.local_steps}: with `unit: conversation` and `noise: "
                f"{privacy.noise}` a round is one DP-SGD step; set local_steps: 1"
            )
        steps = train.local_steps if privacy.noise == "local" else 1
        if train.rounds * steps > MOST_STEPS:
            raise ValueError(
                f"train.rounds {train.rounds}: {train.rounds * steps} noised steps are above "
                f"{MOST_STEPS}, more than the accountants price in time; lower rounds"
                + (" or local_steps" if steps > 1 else "")
            )
        if train.draws > 1 and privacy.unit == "client":
            raise ValueError(
                f"train.draws {train.draws}: with `unit: client` a step takes expected_batch_size "
                "examples of all conversations together; set draws: 1"
            )
        if privacy.unit == "client" and privacy.max_units < self.data.clients:
            raise ValueError(
                f"privacy.max_units {privacy.max_units} is below data.clients "
                f"{self.data.clients}, the units; raise it"
            )
        if self.data.assign == "person" and privacy.unit == "conversation":
            raise ValueError(
                "data.assign: person makes the number of clients depend on conversations; with "
                "`unit: conversation` use `assign: hash`"
            )
        if privacy.client_sampling_seed is not None and self.seed is None:
            raise ValueError(
                "privacy.client_sampling_seed makes cohorts predictable, and what is accounted is "
                "secret sampling; drop it (or, for a test, set `seed` too)"
            )
        if not self.is_summed_noise:
            try:
                _ = self.modulus_bits
            except UpdateError as error:
                raise ValueError(f"secagg: {error}") from None

    def placed(self, local: Mapping[str, str | int | None]) -> Self:
        """This config with a device's own `train` keys, of LOCAL_KEYS alone; has another hash."""
        if not local.keys() <= LOCAL_KEYS:
            raise ConfigError(f"train: a device's own keys are {', '.join(sorted(LOCAL_KEYS))}")
        train = TrainConfig.model_validate({**self.train.model_dump(), **local})
        return self.model_copy(update={"train": train})

    @property
    def is_private(self) -> bool:
        """Whether a privacy guarantee holds at all: noise, and no seed anyone could repeat."""
        return self.privacy.unit != "none" and self.seed is None

    @property
    def is_summed_noise(self) -> bool:
        """Whether noise protects the sum over clients rather than each client's update."""
        return self.privacy.noise in ("distributed", "server")

    @property
    def is_one_step(self) -> bool:
        """Whether a round is one DP-SGD step over all clients' conversations."""
        return self.is_summed_noise and self.privacy.unit == "conversation"

    @property
    def plain_grid_scale(self) -> float:
        """Grid steps per unit where noise is local or absent."""
        scale = self.secagg.grid_scale
        return PLAIN_GRID_SCALE if scale == "auto" else scale

    @property
    def modulus_bits(self) -> int:
        """b where noise is local or absent: a round's sum is taken modulo 2^b."""
        secagg = self.secagg
        bound = modulus.clipped_bound(self.data.clients, secagg.clip_range, self.plain_grid_scale)
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
