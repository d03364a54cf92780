"""The keys of `privacy`: what is protected, who adds the noise, who may learn how much."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedattn.config.section import Clients, Count, Positive, Rate, Section
from fedattn.noise import MAX_STD, MIN_STD

Unit = Literal["conversation", "client", "none"]
Noise = Literal["local", "distributed", "server", "none"]
Row = Literal["outsider", "server", "collusion", "unmasked"]
ROWS: tuple[Row, ...] = ("outsider", "server", "collusion", "unmasked")
LEAST_CLIP_NORM = 1e-9
LARGEST_EPSILON = 20.0  # a larger promise protects next to nothing
_NOISES: dict[Unit, tuple[Noise, ...]] = {
    "conversation": ("local", "distributed", "server"),
    "client": ("distributed", "server"),
    "none": ("none",),
}


class Budgets(Section):
    """The largest epsilon against each adversary (DESIGN section 4); no key, no promise."""

    outsider: Positive | None = None  # sees the released models
    server: Positive | None = None  # the server or a curious participant
    collusion: Positive | None = None  # the server with `secagg.max_colluding` clients
    unmasked: Positive | None = None  # sees one client's unmasked update


class Hypothetical(Section):
    """Noise as if `cohort` clients of `population` took part in a round: for studies alone."""

    cohort: Clients
    population: Clients

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.cohort > self.population:
            raise ValueError(f"cohort {self.cohort} is above population {self.population}")
        return self


class PrivacyConfig(Section):
    """What is protected and by how much (DESIGN section 4)."""

    unit: Unit
    noise: Noise
    sampling_rate: Rate = 0.1  # public Poisson rate per conversation and step
    client_rate: Rate = 1.0  # secret Poisson rate of a client in a round; below 1: unit client
    client_sampling: Literal["poisson", "fixed"] = "poisson"
    client_sampling_seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None  # tests alone
    max_participations: Count | None = None  # rounds a device answers; none: all rounds
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    clip_norm: Positive = 0.5
    epsilon_budget: Positive | Budgets | None = None  # a number: against all that noise holds for
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_units: Count = 10_000  # declared public bound on the number of units
    hypothetical: Hypothetical | None = None
    i_know: bool = False  # promise an epsilon above 20 all the same

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.noise not in _NOISES[self.unit]:
            if "none" in (self.unit, self.noise):
                raise ValueError("`unit: none` goes with `noise: none` and only with it")
            raise ValueError(
                f"`unit: {self.unit}` cannot have `noise: {self.noise}`; "
                f"choose noise: {' or '.join(_NOISES[self.unit])}"
            )
        if self.client_sampling == "fixed":
            raise ValueError(
                "client_sampling: fixed-size cohorts need an accounting of their own, which this "
                "version does not have; use `client_sampling: poisson`"
            )
        if self.unit != "client" and self.client_rate != 1:
            raise ValueError(
                "client_rate below 1 goes with `unit: client`; conversations are sampled inside "
                "each device (sampling_rate)"
            )
        if self.unit == "none":
            self._check_unprotected()
        else:
            self._check_protected()
        return self

    def _check_unprotected(self) -> None:
        if self.epsilon_budget is not None:
            raise ValueError(
                "`epsilon_budget` cannot hold with `unit: none` (epsilon is infinite); "
                "drop it or choose `unit: conversation`"
            )
        if self.hypothetical is not None:
            raise ValueError("`hypothetical` scales noise and `unit: none` has none; drop it")

    def _check_protected(self) -> None:
        if self.noise_multiplier <= 0:
            raise ValueError("noise_multiplier must be above 0; for no privacy say `unit: none`")
        if self.clip_norm < LEAST_CLIP_NORM:
            raise ValueError(
                f"clip_norm {self.clip_norm:g} is below {LEAST_CLIP_NORM:g}, where float32 "
                "gradients underflow; raise it"
            )
        std = self.noise_multiplier * self.clip_norm
        if self.noise == "local" and not MIN_STD <= std <= MAX_STD:
            raise ValueError(
                f"noise_multiplier * clip_norm is {std:g}, must be in 2^-100..2^100, where noise "
                "can be drawn"
            )
        if self.hypothetical is not None and self.unit != "client":
            raise ValueError("`hypothetical` simulates a cohort; it needs `unit: client`")
        if not self.budgets:
            raise ValueError("epsilon_budget is needed, so that training knows when to stop")
        if self.noise == "server" and set(self.budgets) != {"outsider"}:
            raise ValueError(
                "epsilon_budget: with `noise: server` the server sees the sum without noise; a "
                "budget can hold against `outsider` alone"
            )
        if max(self.budgets.values()) > LARGEST_EPSILON and not self.i_know:
            raise ValueError(
                f"epsilon_budget above {LARGEST_EPSILON:g} protects next to nothing; lower it, or "
                "say `i_know: true`"
            )
        if self.delta > 1 / (10 * self.max_units):
            raise ValueError(
                f"delta {self.delta:g} is above 1/(10 max_units) = "
                f"{1 / (10 * self.max_units):g}; lower delta"
            )

    @property
    def budgets(self) -> dict[Row, float]:
        """The largest epsilon by adversary row.

        A single number is promised to every row that the noise protects while secure aggregation
        holds: all four with `local`, without `unmasked` with `distributed`, `outsider` with
        `server`.
        """
        if self.epsilon_budget is None:
            return {}
        if isinstance(self.epsilon_budget, Budgets):
            stated = self.epsilon_budget.model_dump()
            return {row: stated[row] for row in ROWS if stated[row] is not None}
        rows = {"local": ROWS, "distributed": ROWS[:3], "server": ROWS[:1], "none": ()}[self.noise]
        return dict.fromkeys(rows, self.epsilon_budget)
