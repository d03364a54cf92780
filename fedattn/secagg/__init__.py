"""Secure aggregation: the server learns the sum of the survivors' vectors and nothing else.

`client` holds a member's five steps, `server` the server's round; start reading at either.
"""

from fedattn.secagg.confirmation import (
    confirmation_bytes,
    survivors_sha256,
    verify_confirmation,
)
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.state import ClientState

__all__ = [
    "ClientState",
    "RoundSpec",
    "confirmation_bytes",
    "survivors_sha256",
    "verify_confirmation",
]
