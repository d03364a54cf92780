"""The keys of `policy.yaml`, their bounds and defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import Field, model_validator

from fedattn.config import (
    ROWS,
    Budgets,
    CleanConfig,
    Config,
    Count,
    DataConfig,
    Positive,
    Rate,
    Row,
    Section,
    parse_mapping,
    validated,
)
from fedattn.errors import ConfigError

Mode = Literal[
    "conversation/local",
    "conversation/distributed",
    "conversation/server",
    "client/distributed",
    "client/server",
]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# rows that noise protects while secure aggregation holds, as `PrivacyConfig.budgets`
_HELD: Final[dict[str, tuple[Row, ...]]] = {
    "local": ROWS,
    "distributed": ROWS[:3],
    "server": ROWS[:1],
}


class OwnData(Section):
    """This device's conversations: all of a JSONL file, none of them held out."""

    path: Annotated[str, Field(min_length=1)]
    skip_bad: bool = False  # leave refused lines out instead of contributing noise alone
    salt: Annotated[str, Field(min_length=1)] = "fedattn"  # decides thinning and owners
    min_turns: Annotated[int, Field(ge=2)] = 4
    max_reply_bytes: Count = 512
    keep_rate: Rate = 1.0
    thin: dict[str, Rate] = Field(default_factory=dict)
    clean: CleanConfig = Field(default_factory=CleanConfig)

    @property
    def config(self) -> DataConfig:
        """As a data config of one client."""
        return DataConfig(
            source="jsonl", clients=1, validation_share=0, test_share=0, **self.model_dump()
        )


class Limits(Section):
    """The most that an instruction may ask of this device."""

    modes: Annotated[list[Mode], Field(min_length=1)] = [  # noqa: RUF012 (pydantic copies it)
        "conversation/local",
        "conversation/distributed",
        "client/distributed",
    ]
    max_epsilon: Positive | Budgets = 8.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_participations: Count = 200
    min_noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    max_clip_norm: Positive = 1.0
    min_cohort: Count = 5
    min_colluding: Annotated[int, Field(ge=0)] = 1
    # what a server may make this device compute; without a bound it could stop it for days
    max_local_steps: Count = 1_000
    max_examples: Count = 100_000  # of all local steps of a round, where clients are protected
    max_draws: Count = 16  # examples of a conversation in a step, which are computed at once
    max_clients: Count = 100_000  # of the federation
    model_starts: Annotated[list[str], Field(min_length=1)] = ["public"]  # noqa: RUF012

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if not self.budgets:
            raise ValueError("max_epsilon: name at least one adversary, or give one number")
        return self

    @property
    def budgets(self) -> dict[Row, float]:
        """The largest epsilon by adversary row.

        A single number holds against every row that all allowed modes protect.
        """
        if isinstance(self.max_epsilon, Budgets):
            stated = self.max_epsilon.model_dump()
            return {row: stated[row] for row in ROWS if stated[row] is not None}
        held = [set(_HELD[mode.partition("/")[2]]) for mode in self.modes]
        return {row: self.max_epsilon for row in ROWS if all(row in rows for rows in held)}


class Policy(Section):
    """What this device does and allows. Either `limits`, or one config agreed to in every part."""

    app_hashes: list[Hash] = Field(default_factory=list)  # sha256 of bundles that may run
    data: OwnData | None = None  # none: its share of `agreed_config.data`, in a simulation
    limits: Limits | None = None
    agreed_config: Config | None = None
    # How this device computes; on a device with `limits` an instruction's own wishes do not count.
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    max_batch_bytes: Count | None = None
    max_physical_batch: Count = 64
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None  # for tests: NOT PRIVATE

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.limits is None) == (self.agreed_config is None):
            raise ValueError("set either `limits` or `agreed_config`, and not both")
        if self.limits is not None and self.data is None:
            raise ValueError("data: a device with `limits` needs the path of its own conversations")
        agreed = self.agreed_config
        if agreed is not None and agreed.secure_aggregation != "masked" and self.data is not None:
            raise ValueError(
                "agreed_config.secure_aggregation: arithmetic is for simulations alone, and a "
                "device with `data` of its own is none; use `secure_aggregation: masked`"
            )
        if self.agreed_config is not None and self.agreed_config.seed != self.seed:
            raise ValueError("seed must be that of `agreed_config`")
        return self

    @classmethod
    def agreed(cls, config: Config, *, data: OwnData | None = None) -> Policy:
        """The policy that allows `config` and nothing else."""
        return cls(agreed_config=config, data=data, seed=config.seed)

    @property
    def placement(self) -> dict[str, str | int | None]:
        """The keys of `train` that are this device's own."""
        return {
            "device": self.device,
            "threads": self.threads,
            "max_batch_bytes": self.max_batch_bytes,
            "max_physical_batch": self.max_physical_batch,
        }

    def save(self, path: Path) -> None:
        """Write it as YAML that `load_policy` reads."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), "utf-8")


def load_policy(path: str | Path) -> Policy:
    """Read a policy.yaml; ConfigError names key, value and remedy."""
    try:
        text = Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such policy; `fedattn federation join` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as UTF-8 text ({type(error).__name__})"
        ) from None
    return parse_policy(text, where=str(path))


def parse_policy(text: str, *, where: str = "policy") -> Policy:
    """The policy in YAML `text`; `where` names it in errors."""
    raw = parse_mapping(text, where=where, example="docs/deployment.md")
    return validated(Policy, raw, where=where)


def default_policy_yaml(data_path: str | Path, app_hashes: list[str]) -> str:
    """A policy.yaml with the safe defaults, each line explained, for conversations in a file."""
    limits = Limits()
    return _TEMPLATE.format(
        app_hashes=json.dumps(app_hashes),
        path=json.dumps(str(data_path), ensure_ascii=False),
        modes="".join(f"\n    - {mode}" for mode in limits.modes),
        **limits.model_dump(exclude={"modes"}),
    )


_TEMPLATE = """\
# What this device allows. It declines everything else before it reads a conversation.
# A change holds from the next message on. Loosening it cannot bring back what was spent.

app_hashes: {app_hashes}  # sha256 of the app bundles that may run here; none: nothing runs

data:
  path: {path}  # your conversations, one a line; the ledger of what they spent lies beside it
  skip_bad: false  # true: leave lines with problems out (else a bad line makes noise of all)
  # clean: {{junk: true, mask_pii: true}}  # before they train, on this device (docs/data.md)

limits:
  # unit/noise. Not listed: */server, where the server sees sums without noise.
  modes:{modes}
  max_epsilon: {max_epsilon:g}  # over the data's whole life, all runs and federations together
  delta: {delta:g}  # at which epsilon is counted; below 1 / (10 x number of protected units)
  max_participations: {max_participations}  # rounds in the data's life
  min_noise_multiplier: {min_noise_multiplier:g}  # noise over clip norm, at least
  max_clip_norm: {max_clip_norm:g}  # the most that one conversation (or client) may move a sum
  min_cohort: {min_cohort}  # devices that must be left in a sum before it may be opened
  min_colluding: {min_colluding}  # devices that may collude with the server without harm, at least
  max_local_steps: {max_local_steps}  # steps in a round
  max_examples: {max_examples}  # examples in them, in modes that protect clients
  max_draws: {max_draws}  # examples of one conversation in a step
  max_clients: {max_clients}  # devices of a federation
  model_starts: [public]  # models to start from: `public`, or paths of files on this device

device: auto  # auto: the working GPU with the most free memory, else the CPU; cpu; cuda:N
threads: 0  # of the CPU; 0: torch's own choice
max_batch_bytes: null  # memory ceiling of one batch on its device; null: none
max_physical_batch: 64  # examples computed at once, at most
"""
