"""Validators called by keyword, so that the message names the argument.

>>> positive(clip_norm=0.5)
>>> probability(sampling_rate=1.5)
Traceback (most recent call last):
    ...
fedattn.errors.ConfigError: sampling_rate is 1.5, must be in [0, 1]
"""

from __future__ import annotations

import math

from fedattn.errors import ConfigError


def positive(**values: float) -> None:
    """Raise ConfigError unless every value is finite and above zero."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}, must be finite and above 0")


def non_negative(**values: float) -> None:
    """Raise ConfigError unless every value is finite and at least zero."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} is {value}, must be finite and at least 0")


def probability(**values: float) -> None:
    """Raise ConfigError unless every value lies in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}, must be in [0, 1]")
