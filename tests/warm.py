"""Imported once by the server that children of the kill tests are forked from."""

from fedattn.config import config_from_dict
from fedattn.privacy.events import PoissonGaussian
from fedattn.privacy.rows import spends
from tests import killed  # noqa: F401

_CONFIG = {
    "name": "warm",
    "data": {"clients": 2},
    "privacy": {
        "unit": "conversation",
        "noise": "local",
        "sampling_rate": 0.2,
        "noise_multiplier": 1.0,
        "epsilon_budget": 8.0,
    },
    "secagg": {"threshold": 2},
}
spends(config_from_dict(_CONFIG), [PoissonGaussian(0.2, 1.0, 2)])
