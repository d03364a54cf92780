"""One strict YAML file describes a run; every wrong key, type or combination is named.

`load_config(path, overrides)` reads it; `--set a.b=c` overrides go through the same checks.
"""

from fedattn.config.protection import ROWS, Budgets, Hypothetical, PrivacyConfig, Row
from fedattn.config.reading import (
    config_from_dict,
    config_from_json,
    load_config,
    parse_config,
    parse_mapping,
    validated,
)
from fedattn.config.section import Count, Positive, Rate, Section
from fedattn.config.shape import (
    LOCAL_KEYS,
    Architecture,
    Config,
    DataConfig,
    EvalConfig,
    Fault,
    ModelConfig,
    SecAggConfig,
    Stage,
    TrainConfig,
)

__all__ = [
    "LOCAL_KEYS",
    "ROWS",
    "Architecture",
    "Budgets",
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
    "config_from_dict",
    "config_from_json",
    "load_config",
    "parse_config",
    "parse_mapping",
    "validated",
]
