"""Flower's node keys (NIST elliptic curves): their names, and proofs that a device holds its own.

A node key authenticates a SuperNode to the SuperLink; a member's certificate names its hash, so
that one device cannot speak for another's identity.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from fedattn.certificates.documents import require
from fedattn.errors import ProtocolError

# DER and PEM, which node keys sign elsewhere, begin otherwise
_PROOF = b"fedattn/v1/node-key-request\x00"


def node_key_sha256(public_key: bytes) -> str:
    """SHA-256 (hex) of a node key's DER SubjectPublicKeyInfo; `public_key` is OpenSSH or PEM.

    ProtocolError("certificate.node_key") unless it is a public key on a NIST curve.
    """
    spki = _load(public_key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def sign_request(node_key: ec.EllipticCurvePrivateKey, request: bytes) -> bytes:
    """Proof that whoever made `request` (PEM) holds the node key that it names."""
    return node_key.sign(_PROOF + request, ec.ECDSA(SHA256()))


def require_signed_request(public_key: bytes, request: bytes, signature: bytes) -> None:
    """ProtocolError("certificate.node_key") unless `sign_request` made `signature`."""
    try:
        _load(public_key).verify(signature, _PROOF + request, ec.ECDSA(SHA256()))
    except InvalidSignature:
        require(False, "node_key", "the request is not signed by the node key that it names")


def _load(public_key: bytes) -> ec.EllipticCurvePublicKey:
    try:
        is_pem = public_key.startswith(b"-----BEGIN")
        key = (load_pem_public_key if is_pem else load_ssh_public_key)(public_key)
    except Exception:  # the library has many errors for foreign bytes
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ProtocolError("certificate.node_key", "not a public key on a NIST curve")
    return key
