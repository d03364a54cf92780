"""Certificates: the federation's authority (CA) vouches for identity keys made on devices.

One level, Ed25519 (RFC 8410), X.509 (RFC 5280), PEM. The authority signs members' certificates
itself: there is no path to build, nothing to delegate. A private key stays where it was made: a
device sends a *request* signed by its key and gets a certificate. Whoever holds the authority
decides who can be in a roster, so it must not be the server (DESIGN section 5). `load_roster` is
what a client or an auditor checks; each check is a ProtocolError("certificate.<check>").

X.509 signs bare DER, which starts with 0x30; whatever `SigningKey.sign` signs starts with 0x00
(the length of a short purpose). So neither kind of signature ever passes as the other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

MEMBER_URI: Final = "urn:fedattn:member:"
NODE_KEY_URI: Final = "urn:fedattn:node-key:"  # then the SHA-256 of the Flower node key, in hex
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_NAME = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")
_KNOWN = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)
_CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_Document: TypeAlias = x509.Certificate | x509.CertificateSigningRequest
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Authority:
    """The CA where it is held: its key and its own certificate (PEM)."""

    key: SigningKey
    certificate: bytes


@dataclass(frozen=True)
class Member:
    """What a verified certificate says, or a request."""

    name: str
    public_key: bytes  # raw Ed25519, 32 bytes
    node_key_sha256: str | None  # the Flower node key that this identity is bound to
    serial: int | None  # None in a request


def make_authority(stream: Randomness, name: str, *, at: datetime, valid_days: int) -> Authority:
    """A new CA: a key from the stream, and its self-signed certificate, valid from `at` on."""
    key, serial = SigningKey.generate(stream), stream.bytes(20)
    builder = _builder(serial, (at, valid_days), name, key.public_bytes, _subject(name))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
    return Authority(key, _signed(builder, key))


def make_request(identity: SigningKey, name: str, *, node_key_sha256: str | None = None) -> bytes:
    """A signing request (PKCS #10, PEM) by this device's key, which proves that it holds it."""
    builder = x509.CertificateSigningRequestBuilder(_subject(name))
    builder = builder.add_extension(_alternative_name(name, node_key_sha256), critical=False)
    return _signed(builder, identity)


def read_request(request: bytes) -> Member:
    """What a request asks for, for a person to compare before it is certified."""
    try:
        asked = x509.load_pem_x509_csr(request)
        _ = asked.extensions  # read late by the library: what is malformed fails here
        proves_key = asked.is_signature_valid
    except Exception:  # the library has many errors for foreign bytes
        raise ProtocolError("certificate.format", "not a signing request in PEM") from None
    public_key = _ed25519(asked)
    _require(proves_key, "signature", "the request is not signed by the key that it names")
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
    _require(asked.name == name, "name", "the request was made under another name")
    builder = _builder(stream.bytes(20), (at, valid_days), name, asked.public_key, ca.subject)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(_CLIENT, critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key._key.public_key())
    builder = builder.add_extension(signer, critical=False)
    names = _alternative_name(name, asked.node_key_sha256)
    return _signed(builder.add_extension(names, critical=False), authority.key)


def require_authority(certificate: bytes, *, at: datetime) -> x509.Certificate:
    """A pinned CA certificate (PEM), parsed: an Ed25519 key that signed itself and may certify."""
    ca = _authority(certificate)
    _require_valid(ca, at, "the authority")
    return ca


@lru_cache(maxsize=8)
def _authority(certificate: bytes) -> x509.Certificate:
    ca = _parse(certificate)
    _ed25519(ca)
    _require(_is_issued_by(ca, ca), "authority", "is not signed by itself")
    constraints, usage = _extension(ca, x509.BasicConstraints), _extension(ca, x509.KeyUsage)
    certifies = constraints and constraints.ca and usage and usage.key_cert_sign
    _require(bool(certifies), "authority", "may not certify others")
    return ca


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
    _require_valid(parsed, at, "the certificate")
    _require(member.serial not in revoked, "revoked", "the authority revoked it")
    return member


@lru_cache(maxsize=4096)  # a roster is verified every round
def _member(certificate: bytes, authority: bytes) -> tuple[x509.Certificate, Member]:
    """All of `read_member` that does not change with time."""
    ca, member = _authority(authority), _parse(certificate)
    # (1) whoever else signed it vouches for nobody here
    _require(_is_issued_by(member, ca), "issuer", "not issued by this federation's authority")
    # (2) a revocation names a serial, so every certificate needs one
    _require(0 < member.serial_number < 1 << 159, "serial", "must be in 1..2^159-1")
    # (3) what is critical and not understood limits the certificate in a way we cannot follow
    unknown = any(ext.critical and not isinstance(ext.value, _KNOWN) for ext in member.extensions)
    _require(not unknown, "critical", "has a critical extension that is not known here")
    public_key = _ed25519(member)
    # (4) a member that could certify others would fill the roster with its own
    no_authority = _extension(member, x509.BasicConstraints) == x509.BasicConstraints(False, None)
    _require(no_authority, "constraints", "must say CA: no")
    # (5) nor may the certificate of a TLS server, of the same authority, stand for a member
    usage, purpose = _extension(member, x509.KeyUsage), _extension(member, x509.ExtendedKeyUsage)
    _require(usage == _usage(digital_signature=True), "key_usage", "must be digital signature")
    _require(purpose == _CLIENT, "key_usage", "must be for client authentication alone")
    # (6) one name, said twice
    name, node_key_sha256 = _names(member)
    return member, Member(name, public_key, node_key_sha256, member.serial_number)


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
    _require(is_clean, "format", "not a bundle of PEM certificates")
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
        _require(len(set(values)) == len(values), check, "two certificates have the same")
    return tuple(member.public_key for member in members)


def _builder(
    serial: bytes, validity: tuple[datetime, int], name: str, public_key: bytes, issuer: x509.Name
) -> x509.CertificateBuilder:
    at, valid_days = validity
    _require(valid_days >= 1, "valid_days", f"is {valid_days}, must be at least 1")
    start = _utc(at).replace(microsecond=0)
    key = Ed25519PublicKey.from_public_bytes(public_key)
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=_subject(name),
        public_key=key,
        serial_number=1 + (int.from_bytes(serial, "big") >> 2),
        not_valid_before=start,
        not_valid_after=start + timedelta(days=valid_days),
    )
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _signed(
    builder: x509.CertificateBuilder | x509.CertificateSigningRequestBuilder, key: SigningKey
) -> bytes:
    # the builders sign by themselves, so they need the library's own key object
    return builder.sign(key._key, None).public_bytes(Encoding.PEM)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    none = dict.fromkeys((*rest, "crl_sign", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature, key_cert_sign=key_cert_sign, **none)


def _subject(name: str) -> x509.Name:
    _require(bool(_NAME.match(name)), "name", "must be 1..64 of A-Za-z0-9._-, the first A-Za-z0-9")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative_name(name: str, node_key_sha256: str | None) -> x509.SubjectAlternativeName:
    uris = [MEMBER_URI + name]
    if node_key_sha256 is not None:
        _require(bool(_SHA256.match(node_key_sha256)), "node_key", "must be 64 hex digits")
        uris.append(NODE_KEY_URI + node_key_sha256)
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def _names(document: _Document) -> tuple[str, str | None]:
    """The member's name, in CN and SAN alike, and the hash of its node key."""
    common = document.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(common[0].value) if len(document.subject) == len(common) == 1 else ""
    found = _extension(document, x509.SubjectAlternativeName)
    uris = [str(entry.value) for entry in found or ()]
    node_key = uris[1].removeprefix(NODE_KEY_URI) if len(uris) > 1 else None
    _subject(name)  # refuses what no member may be called
    same = found == _alternative_name(name, node_key)
    _require(same, "name", "subject and alternative name must name one and the same member")
    return name, node_key


def _parse(certificate: bytes) -> x509.Certificate:
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        _ = parsed.extensions  # as in `read_request`
        # one certificate in one encoding: nothing around it, no unused bits in its signature
        is_plain = parsed.public_bytes(Encoding.PEM) == certificate
        is_plain &= parsed.public_bytes(Encoding.DER).endswith(b"\x03\x41\x00" + parsed.signature)
    except Exception:
        raise ProtocolError("certificate.format", "not an X.509 certificate in PEM") from None
    _require(is_plain, "format", "must be one X.509 certificate in plain PEM")
    return parsed


def _ed25519(document: _Document) -> bytes:
    try:
        key = document.public_key()
    except Exception:  # a curve that the library does not know
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ProtocolError("certificate.key_type", "must hold an Ed25519 key")
    return key.public_bytes_raw()


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)  # names and signature
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _require_valid(certificate: x509.Certificate, at: datetime, which: str) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    _require(_utc(at) >= start, "not_yet_valid", f"{which} is valid from {start} on")
    _require(_utc(at) <= end, "expired", f"{which} was valid until {end}")


def _utc(at: datetime) -> datetime:
    _require(at.tzinfo is not None, "time", "must be aware of its time zone")
    return at.astimezone(UTC)


def _extension(document: _Document, kind: type[_Extension]) -> _Extension | None:
    try:
        return document.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _require(holds: bool, check: str, detail: str) -> None:
    if not holds:
        raise ProtocolError(f"certificate.{check}", detail)
