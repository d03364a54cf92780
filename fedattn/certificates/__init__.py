"""Certificates: the federation's authority (CA) vouches for identity keys made on devices.

One level, Ed25519 (RFC 8410), X.509 (RFC 5280), PEM. The authority signs members' certificates
itself: there is no path to build, nothing to delegate. A private key stays where it was made: a
device sends a *request* signed by its key and gets a certificate. Whoever holds the authority
decides who can be in a roster, so it must not be the server (DESIGN section 5). `load_roster` is
what a client or an auditor checks; each check is a ProtocolError("certificate.<check>").

The authority also signs the TLS certificate of the server's host (`servers`) and the list of what
it took back (`revocations`). X.509 signs bare DER, which starts with 0x30; whatever
`SigningKey.sign` signs starts with 0x00 (the length of a short purpose). So neither kind of
signature ever passes as the other.
"""

from fedattn.certificates.authority import Authority, make_authority, require_authority
from fedattn.certificates.documents import valid_until
from fedattn.certificates.members import (
    MEMBER_URI,
    NODE_KEY_URI,
    Member,
    certify,
    load_roster,
    make_request,
    read_member,
    read_request,
    split_pem,
    verify_member,
)
from fedattn.certificates.node_keys import node_key_sha256, require_signed_request, sign_request
from fedattn.certificates.revocations import (
    Revocations,
    later_revocations,
    make_revocations,
    read_revocations,
)
from fedattn.certificates.servers import (
    Server,
    certify_server,
    make_server_request,
    read_server,
    read_server_request,
)

__all__ = [
    "MEMBER_URI",
    "NODE_KEY_URI",
    "Authority",
    "Member",
    "Revocations",
    "Server",
    "certify",
    "certify_server",
    "later_revocations",
    "load_roster",
    "make_authority",
    "make_request",
    "make_revocations",
    "make_server_request",
    "node_key_sha256",
    "read_member",
    "read_request",
    "read_revocations",
    "read_server",
    "read_server_request",
    "require_authority",
    "require_signed_request",
    "sign_request",
    "split_pem",
    "valid_until",
    "verify_member",
]
