"""The federation's authority (CA): one level, its own root, the only signer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509

from fedattn.certificates.documents import (
    builder,
    ed25519,
    extension,
    is_issued_by,
    parse,
    require,
    require_valid,
    signed,
    subject,
    usage,
)
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey


@dataclass(frozen=True)
class Authority:
    """The CA where it is held: its key and its own certificate (PEM)."""

    key: SigningKey
    certificate: bytes


def make_authority(stream: Randomness, name: str, *, at: datetime, valid_days: int) -> Authority:
    """A new CA: a key from the stream, and its self-signed certificate, valid from `at` on.

    Its key may sign certificates and lists of revoked ones (RFC 5280, 4.2.1.3).
    """
    key, serial = SigningKey.generate(stream), stream.bytes(20)
    own = key._key.public_key()
    unsigned = builder(serial, (at, valid_days), name, own, subject(name))
    unsigned = unsigned.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    unsigned = unsigned.add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
    return Authority(key, signed(unsigned, key))


def require_authority(certificate: bytes, *, at: datetime) -> x509.Certificate:
    """A pinned CA certificate (PEM), parsed: an Ed25519 key that signed itself and may certify."""
    ca = timeless_authority(certificate)
    require_valid(ca, at, "the authority")
    return ca


@lru_cache(maxsize=8)
def timeless_authority(certificate: bytes) -> x509.Certificate:
    """All of `require_authority` that does not change with time."""
    ca = parse(certificate)
    ed25519(ca)
    require(is_issued_by(ca, ca), "authority", "is not signed by itself")
    constraints, allowed = extension(ca, x509.BasicConstraints), extension(ca, x509.KeyUsage)
    certifies = constraints and constraints.ca and allowed and allowed.key_cert_sign
    require(bool(certifies), "authority", "may not certify others")
    return ca
