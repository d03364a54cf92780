"""Which certificates the authority took back: an X.509 CRL (RFC 5280, section 5), PEM.

A list is whole, never a difference to another one. Each has a number; a later one has a larger
number. Whoever hands out lists can keep a new one back until the old one expires, but cannot make
somebody who saw a later list believe an earlier one (`later_revocations`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedattn.certificates.authority import Authority, require_authority, timeless_authority
from fedattn.certificates.documents import extension, require, utc
from fedattn.errors import ProtocolError


@dataclass(frozen=True)
class Revocations:
    """A verified list: its number, the serials it takes back, and when it must be renewed."""

    number: int
    serials: frozenset[int]
    until: datetime


def make_revocations(
    authority: Authority, revoked: Collection[int], number: int, *, at: datetime, valid_days: int
) -> bytes:
    """The CRL (PEM) that takes back the serials `revoked`; the next one needs a larger number."""
    ca = require_authority(authority.certificate, at=at)
    require(valid_days >= 1, "valid_days", f"is {valid_days}, must be at least 1")
    require(0 < number < 1 << 159, "revocations.number", "must be in 1..2^159-1")
    start = utc(at).replace(microsecond=0)
    unsigned = x509.CertificateRevocationListBuilder(
        issuer_name=ca.subject, last_update=start, next_update=start + timedelta(days=valid_days)
    )
    for serial in sorted(set(revoked)):
        entry = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=start)
        unsigned = unsigned.add_revoked_certificate(entry.build())
    key = authority.key._key
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    unsigned = unsigned.add_extension(signer, critical=False)
    unsigned = unsigned.add_extension(x509.CRLNumber(number), critical=False)
    return unsigned.sign(key, None).public_bytes(Encoding.PEM)


def read_revocations(crl: bytes, authority: bytes, *, at: datetime | None) -> Revocations:
    """What a CRL (PEM) takes back, verified under the CA certificate `authority` at time `at`.

    `at=None` judges no date: for the authority, which renews a list that ended, and for numbers.
    ProtocolError("certificate.revocations.format" | ".issuer" | ".critical" | ".number" |
    ".not_yet_valid" | ".expired"), or "certificate.*" for the authority.
    """
    ca = timeless_authority(authority) if at is None else require_authority(authority, at=at)
    parsed = _parse(crl)
    # (1) signed by the one key that certifies, which says that it signs lists, too; what is read
    # of a list comes after, so that no foreign bytes are interpreted
    allowed = extension(ca, x509.KeyUsage)
    key = ca.public_key()
    assert isinstance(key, Ed25519PublicKey)  # as `timeless_authority` made sure
    own = parsed.is_signature_valid(key) and parsed.issuer == ca.subject
    _require(own, "issuer", "not issued by this federation's authority")
    _require(bool(allowed and allowed.crl_sign), "issuer", "the authority may not sign lists")
    _require(_is_whole(parsed), "format", "not an X.509 CRL in PEM")
    # (2) a difference to another list, or a list of some certificates only, says so critically
    unknown = any(ext.critical for ext in parsed.extensions)
    unknown |= any(ext.critical for entry in parsed for ext in entry.extensions)
    _require(not unknown, "critical", "has a critical extension that is not known here")
    # (3) without a number an old list could pass for a new one
    try:
        number = parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = 0
    _require(0 < number < 1 << 159, "number", "must be in 1..2^159-1")
    start, until = parsed.last_update_utc, parsed.next_update_utc
    if until is None:
        raise ProtocolError("certificate.revocations.expired", "must say when it ends")
    if at is not None:
        _require(utc(at) >= start, "not_yet_valid", f"the list is valid from {start} on")
        remedy = "have the authority renew it (`fedattn federation revoke`)"
        _require(utc(at) <= until, "expired", f"the list was valid until {until}; {remedy}")
    return Revocations(number, frozenset(entry.serial_number for entry in parsed), until)


def later_revocations(held: bytes, shown: bytes, authority: bytes, *, at: datetime) -> bytes:
    """`shown` if it is valid and no older than `held` (b"": none is held); else it is refused.

    ProtocolError as `read_revocations` does for `shown`, and ".revocations.rollback" for a smaller
    number, or the same one over other serials. `held` may have expired: that is why it is renewed.
    """
    new = read_revocations(shown, authority, at=at)
    if held:
        old = read_revocations(held, authority, at=None)
        detail = f"number {new.number} is older than number {old.number}, which was seen before"
        _require(new.number >= old.number, "rollback", detail)
        same = new.number > old.number or new.serials == old.serials
        _require(same, "rollback", f"two different lists have the number {new.number}")
    return shown


def _parse(crl: bytes) -> x509.CertificateRevocationList:
    try:
        parsed = x509.load_pem_x509_crl(crl)
        is_plain = parsed.public_bytes(Encoding.PEM) == crl
        is_plain &= parsed.public_bytes(Encoding.DER).endswith(b"\x03\x41\x00" + parsed.signature)
    except Exception:  # the library has many errors for foreign bytes
        raise ProtocolError("certificate.revocations.format", "not an X.509 CRL in PEM") from None
    _require(is_plain, "format", "must be one X.509 CRL in plain PEM")
    return parsed


def _is_whole(parsed: x509.CertificateRevocationList) -> bool:
    """Whether the parts that the library reads late can be read."""
    try:
        _ = parsed.extensions, [entry.extensions for entry in parsed]
        _ = parsed.last_update_utc, parsed.next_update_utc
    except Exception:
        return False
    return True


def _require(holds: bool, check: str, detail: str) -> None:
    require(holds, f"revocations.{check}", detail)
