"""The federation kit: each party's folder, its keys, and what parties hand each other.

    authority   found, approve, revoke        holds the key that decides who is a member
    server      make, install, admit          holds the ledger's key and the TLS key
    device      join, install                 holds identity, node key and ledger key

Private keys are made in the folder where they stay. What travels is public and verified on
arrival: invitation, request.json, approval, revoked.crl. Nothing here knows Flower or torch.
"""

from fedattn.federation.contents import Contents, contents, require_ready
from fedattn.federation.documents import (
    Approval,
    Federation,
    ServerSettings,
    read_federation,
    read_settings,
)
from fedattn.federation.folders import kind_of, require_private
from fedattn.federation.server import admitted

__all__ = [
    "Approval",
    "Contents",
    "Federation",
    "ServerSettings",
    "admitted",
    "contents",
    "kind_of",
    "read_federation",
    "read_settings",
    "require_private",
    "require_ready",
]
