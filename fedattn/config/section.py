"""What the sections of a config share: strictness and bounded number types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1 << 53)]  # what a float holds exactly
# Each possible cohort has a threshold of its own, and an audit goes through them all
MOST_CLIENTS = 10_000_000
Clients = Annotated[int, Field(ge=1, le=MOST_CLIENTS)]
MOST_STEPS = 1_000_000  # of a run: as many as its audit can price in minutes


class Section(BaseModel):
    """A block of the config: unknown keys and quiet type changes are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
