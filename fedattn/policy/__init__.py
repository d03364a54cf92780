"""What a device allows: `policy.yaml`, and the rules by which it declines an instruction.

shape.py   Policy, its limits and defaults; reading and writing it
rules.py   the checks, pure functions: each raises RefusalError with the name of its rule
"""

from fedattn.policy.rules import check, check_spend
from fedattn.policy.shape import (
    Limits,
    OwnData,
    Policy,
    default_policy_yaml,
    load_policy,
    parse_policy,
)

__all__ = [
    "Limits",
    "OwnData",
    "Policy",
    "check",
    "check_spend",
    "default_policy_yaml",
    "load_policy",
    "parse_policy",
]
