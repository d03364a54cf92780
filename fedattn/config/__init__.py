"""One strict YAML file describes a run; every wrong key, type or combination is named.

`load_config(path, overrides)` reads it; `--set a.b=c` overrides go through the same checks.
"""

from fedattn.config.data import CleanConfig, DataConfig
from fedattn.config.protection import ROWS, Budgets, Hypothetical, PrivacyConfig, Row
from fedattn.config.reading import (
    config_from_dict,
    config_from_json,
    load_config,
    parse_config,
    parse_mapping,
    validated,
)
from fedattn.config.section import MOST_CLIENTS, MOST_STEPS, Count, Positive, Rate, Section
from fedattn.config.shape import Config, EvalConfig, Fault, SecAggConfig, Stage
from fedattn.config.training import (
    LOCAL_KEYS,
    Architecture,
    AugmentConfig,
    ModelConfig,
    Trainable,
    TrainConfig,
)

__all__ = [
    "LOCAL_KEYS",
    "MOST_CLIENTS",
    "MOST_STEPS",
    "ROWS",
    "Architecture",
    "AugmentConfig",
    "Budgets",
    "CleanConfig",
    "Config",
    "Count",
    "DataConfig",
    "EvalConfig",
    "Fault",
    "Hypothetical",
    "ModelConfig",
    "Positive",
    "PrivacyConfig",
    "Rate",
    "Row",
    "SecAggConfig",
    "Section",
    "Stage",
    "TrainConfig",
    "Trainable",
    "config_from_dict",
    "config_from_json",
    "load_config",
    "parse_config",
    "parse_mapping",
    "validated",
]
