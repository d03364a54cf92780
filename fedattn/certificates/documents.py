"""What all documents of one authority share: encoding, names, times, and who signed them.

Each check is a ProtocolError("certificate.<check>"). Ed25519 signatures alone (RFC 8410): whoever
signed with another algorithm is not this authority.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedattn.errors import ProtocolError
from fedattn.signing import SigningKey

_NAME: Final = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_KNOWN = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)
Document: TypeAlias = x509.Certificate | x509.CertificateSigningRequest
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def builder(
    serial: bytes,
    validity: tuple[datetime, int],
    name: str,
    key: Ed25519PublicKey | EllipticCurvePublicKey,
    issuer: x509.Name,
) -> x509.CertificateBuilder:
    """A certificate of `key` for `name`: valid for days from a time on, a serial of 158 bits."""
    at, valid_days = validity
    require(valid_days >= 1, "valid_days", f"is {valid_days}, must be at least 1")
    start = utc(at).replace(microsecond=0)
    made = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject(name),
        public_key=key,
        serial_number=1 + (int.from_bytes(serial, "big") >> 2),
        not_valid_before=start,
        not_valid_after=start + timedelta(days=valid_days),
    )
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def signed(
    unsigned: x509.CertificateBuilder | x509.CertificateSigningRequestBuilder, key: SigningKey
) -> bytes:
    """What was built, signed, in PEM."""
    # the builders sign by themselves, so they need the library's own key object
    return unsigned.sign(key._key, None).public_bytes(Encoding.PEM)


def usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """The key may do what is named here, and nothing else."""
    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    none = dict.fromkeys((*rest, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, **none)


def subject(name: str) -> x509.Name:
    """The subject of that one common name."""
    require(bool(_NAME.match(name)), "name", "must be 1..64 of A-Za-z0-9._-, the first A-Za-z0-9")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def common_name(document: Document) -> str:
    """The subject's common name; "" unless it is all that the subject says."""
    common = document.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if len(document.subject) == len(common) == 1 else ""


def parse(certificate: bytes) -> x509.Certificate:
    """One certificate in plain PEM; ".format" for anything else."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        _ = parsed.extensions  # read late by the library: what is malformed fails here
        # one certificate in one encoding: nothing around it, no unused bits in its signature
        is_plain = parsed.public_bytes(Encoding.PEM) == certificate
        is_plain &= parsed.public_bytes(Encoding.DER).endswith(b"\x03\x41\x00" + parsed.signature)
    except Exception:  # the library has many errors for foreign bytes
        raise ProtocolError("certificate.format", "not an X.509 certificate in PEM") from None
    require(is_plain, "format", "must be one X.509 certificate in plain PEM")
    return parsed


def parse_request(request: bytes) -> x509.CertificateSigningRequest:
    """A signing request (PKCS #10, PEM) that proves its key; ".format" | ".signature" if not."""
    try:
        asked = x509.load_pem_x509_csr(request)
        _ = asked.extensions
        proves_key = asked.is_signature_valid
    except Exception:
        raise ProtocolError("certificate.format", "not a signing request in PEM") from None
    require(proves_key, "signature", "the request is not signed by the key that it names")
    return asked


def ed25519(document: Document) -> bytes:
    """The document's key, raw, 32 bytes; ".key_type" if it is another kind."""
    try:
        key = document.public_key()
    except Exception:  # a curve that the library does not know
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ProtocolError("certificate.key_type", "must hold an Ed25519 key")
    return key.public_bytes_raw()


def require_member_of(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """What holds for every certificate of `authority`, whatever it is for."""
    # (1) whoever else signed it vouches for nobody here
    own = is_issued_by(certificate, authority)
    require(own, "issuer", "not issued by this federation's authority")
    # (2) a revocation names a serial, so every certificate needs one
    require(0 < certificate.serial_number < 1 << 159, "serial", "must be in 1..2^159-1")
    # (3) what is critical and not understood limits the certificate in a way we cannot follow
    unknown = any(
        ext.critical and not isinstance(ext.value, _KNOWN) for ext in certificate.extensions
    )
    require(not unknown, "critical", "has a critical extension that is not known here")


def require_end(certificate: x509.Certificate, purpose: x509.ExtendedKeyUsage, what: str) -> None:
    """That the certificate certifies nobody else, and serves one purpose alone."""
    # (4) a member that could certify others would fill the roster with its own
    no_authority = extension(certificate, x509.BasicConstraints) == x509.BasicConstraints(
        False, None
    )
    require(no_authority, "constraints", "must say CA: no")
    # (5) nor may the certificate of a TLS server, of the same authority, stand for a member
    allowed = extension(certificate, x509.KeyUsage)
    require(allowed == usage(digital_signature=True), "key_usage", "must be digital signature")
    found = extension(certificate, x509.ExtendedKeyUsage)
    require(found == purpose, "key_usage", f"must be for {what} alone")


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether names and signature say so."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def require_valid(certificate: x509.Certificate, at: datetime, which: str) -> None:
    """That `at` lies in the certificate's time."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    require(utc(at) >= start, "not_yet_valid", f"{which} is valid from {start} on")
    require(utc(at) <= end, "expired", f"{which} was valid until {end}")


def valid_until(certificate: bytes) -> datetime:
    """The last second of a certificate (PEM), in UTC."""
    return parse(certificate).not_valid_after_utc


def utc(at: datetime) -> datetime:
    """The time in UTC; a time that names no zone is refused."""
    require(at.tzinfo is not None, "time", "must be aware of its time zone")
    return at.astimezone(UTC)


def extension(document: Document, kind: type[_Extension]) -> _Extension | None:
    """The document's extension of that kind, if it has one."""
    try:
        return document.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def require(holds: bool, check: str, detail: str) -> None:
    """Raise ProtocolError("certificate.<check>") unless it holds."""
    if not holds:
        raise ProtocolError(f"certificate.{check}", detail)
