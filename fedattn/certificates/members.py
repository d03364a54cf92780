"""Members: devices whose identity key the authority certified, bound to their Flower node key."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedattn.certificates.authority import Authority, require_authority, timeless_authority
from fedattn.certificates.documents import (
    Document,
    builder,
    common_name,
    ed25519,
    extension,
    parse,
    parse_request,
    require,
    require_end,
    require_member_of,
    require_valid,
    signed,
    subject,
    usage,
)
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

MEMBER_URI: Final = "urn:fedattn:member:"
NODE_KEY_URI: Final = "urn:fedattn:node-key:"  # then the SHA-256 of the Flower node key, in hex
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")
_CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True)
class Member:
    """What a verified certificate says, or a request."""

    name: str
    public_key: bytes  # raw Ed25519, 32 bytes
    node_key_sha256: str | None  # the Flower node key that this identity is bound to
    serial: int | None  # None in a request


def make_request(identity: SigningKey, name: str, *, node_key_sha256: str | None = None) -> bytes:
    """A signing request (PKCS #10, PEM) by this device's key, which proves that it holds it."""
    unsigned = x509.CertificateSigningRequestBuilder(subject(name))
    unsigned = unsigned.add_extension(_alternative_name(name, node_key_sha256), critical=False)
    return signed(unsigned, identity)


def read_request(request: bytes) -> Member:
    """What a request asks for, for a person to compare before it is certified."""
    asked = parse_request(request)
    public_key = ed25519(asked)
    name, node_key_sha256 = _names(asked)
    return Member(name, public_key, node_key_sha256, None)


def certify(
    authority: Authority, request: bytes, name: str, stream: Randomness, *, at: datetime,
    valid_days: int
) -> bytes:  # fmt: skip
    """The certificate (PEM) of the device that made `request` under the agreed `name`.

    Of the request only key, name and node key are taken; the serial is 158 random bits. Raises as
    `read_request` and `require_authority` do, ProtocolError("certificate.name") for another name.
    """
    ca, asked = require_authority(authority.certificate, at=at), read_request(request)
    require(asked.name == name, "name", "the request was made under another name")
    key = Ed25519PublicKey.from_public_bytes(asked.public_key)
    unsigned = builder(stream.bytes(20), (at, valid_days), name, key, ca.subject)
    unsigned = unsigned.add_extension(x509.BasicConstraints(False, None), critical=True)
    unsigned = unsigned.add_extension(usage(digital_signature=True), critical=True)
    unsigned = unsigned.add_extension(_CLIENT, critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key._key.public_key())
    unsigned = unsigned.add_extension(signer, critical=False)
    names = _alternative_name(name, asked.node_key_sha256)
    return signed(unsigned.add_extension(names, critical=False), authority.key)


def read_member(
    certificate: bytes, authority: bytes, *, at: datetime, revoked: Collection[int] = ()
) -> Member:
    """What a certificate (PEM) says, verified under the CA certificate `authority` at time `at`.

    Raises ProtocolError("certificate.format" | ".authority" | ".issuer" | ".expired" | ".critical"
    | ".not_yet_valid" | ".serial" | ".revoked" | ".key_type" | ".constraints" | ".key_usage" |
    ".name" | ".node_key").
    """
    require_authority(authority, at=at)
    parsed, member = _member(certificate, authority)
    require_valid(parsed, at, "the certificate")
    require(member.serial not in revoked, "revoked", "the authority revoked it")
    return member


@lru_cache(maxsize=4096)  # a roster is verified every round
def _member(certificate: bytes, authority: bytes) -> tuple[x509.Certificate, Member]:
    """All of `read_member` that does not change with time."""
    ca, parsed = timeless_authority(authority), parse(certificate)
    require_member_of(parsed, ca)
    public_key = ed25519(parsed)
    require_end(parsed, _CLIENT, "client authentication")
    # (6) one name, said twice
    name, node_key_sha256 = _names(parsed)
    return parsed, Member(name, public_key, node_key_sha256, parsed.serial_number)


def verify_member(
    certificate: bytes, authority: bytes, *, at: datetime, revoked: Collection[int] = ()
) -> bytes:
    """The 32-byte public key that `read_member` verifies; raises as it does."""
    return read_member(certificate, authority, at=at, revoked=revoked).public_key


def split_pem(bundle: bytes) -> list[bytes]:
    """The certificates of a PEM bundle, one after another, each as its own PEM bytes.

    ProtocolError("certificate.format") if anything but certificates is in it.
    """
    *parts, rest = bundle.split(_END)
    found = [part.lstrip() + _END + b"\n" for part in parts]
    is_clean = not rest.strip() and all(part.startswith(_BEGIN) for part in found)
    require(is_clean, "format", "not a bundle of PEM certificates")
    return found


def load_roster(
    certificates: Sequence[bytes], authority: bytes, *, at: datetime, revoked: Collection[int] = ()
) -> tuple[bytes, ...]:
    """The members' public keys, in the order of `certificates`; nobody is in it twice.

    Raises as `read_member` does, and ProtocolError("certificate.repeated") for a key, or ".serial"
    or ".name" for a serial or name, that two certificates share.
    """
    members = [read_member(pem, authority, at=at, revoked=revoked) for pem in certificates]
    for check, values in (
        ("repeated", [member.public_key for member in members]),
        ("serial", [member.serial for member in members]),
        ("name", [member.name for member in members]),
    ):
        require(len(set(values)) == len(values), check, "two certificates have the same")
    return tuple(member.public_key for member in members)


def _alternative_name(name: str, node_key_sha256: str | None) -> x509.SubjectAlternativeName:
    uris = [MEMBER_URI + name]
    if node_key_sha256 is not None:
        require(bool(_SHA256.match(node_key_sha256)), "node_key", "must be 64 hex digits")
        uris.append(NODE_KEY_URI + node_key_sha256)
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def _names(document: Document) -> tuple[str, str | None]:
    """The member's name, in CN and SAN alike, and the hash of its node key."""
    name = common_name(document)
    found = extension(document, x509.SubjectAlternativeName)
    uris = [str(entry.value) for entry in found or ()]
    node_key = uris[1].removeprefix(NODE_KEY_URI) if len(uris) > 1 else None
    subject(name)  # refuses what no member may be called
    same = found == _alternative_name(name, node_key)
    require(same, "name", "subject and alternative name must name one and the same member")
    return name, node_key
