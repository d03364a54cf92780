"""What the authority took back: a list that nobody else can make, shorten, or replay."""

from __future__ import annotations

import base64
import subprocess
import textwrap
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.certificates import (
    Authority,
    later_revocations,
    make_authority,
    make_revocations,
    read_revocations,
)
from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
CA = make_authority(Randomness.seeded(1), "test-authority", at=NOW - DAY, valid_days=365)


def made(*serials, number=1, ca=CA, at=NOW, days=30):
    return make_revocations(ca, serials, number, at=at, valid_days=days)


def read(crl, *, at=NOW, ca=CA):
    return read_revocations(crl, ca.certificate, at=at)


def refuses(check, call, *args, **keywords):
    with pytest.raises(ProtocolError) as caught:
        call(*args, **keywords)
    assert caught.value.check == f"certificate.{check}", str(caught.value)
    return str(caught.value)


def test_a_list_says_its_number_its_serials_and_its_end():
    found = read(made(7, 3, 7, number=5))
    assert (found.number, found.serials) == (5, frozenset({3, 7}))
    assert found.until == NOW + 30 * DAY
    assert read(made()).serials == frozenset()
    assert made(3, 7) == made(7, 3)  # no order, no randomness


def test_openssl_agrees(tmp_path):
    (tmp_path / "ca.pem").write_bytes(CA.certificate)
    (tmp_path / "list.crl").write_bytes(made(0xABCDEF, number=9))
    done = subprocess.run(
        ["openssl", "crl", "-in", "list.crl", "-CAfile", "ca.pem", "-noout", "-text"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "verify OK" in done.stdout + done.stderr
    assert "ABCDEF" in done.stdout


def test_a_list_holds_from_its_start_to_its_end():
    crl = made(days=2)
    for at in (NOW, NOW + 2 * DAY):
        read(crl, at=at)
    refuses("revocations.not_yet_valid", read, crl, at=NOW - timedelta(seconds=1))
    late = NOW + 2 * DAY + timedelta(seconds=1)
    assert "have the authority renew it" in refuses("revocations.expired", read, crl, at=late)
    assert read(crl, at=None).number == 1  # for the authority, which renews it
    refuses("time", read, crl, at=NOW.replace(tzinfo=None))
    refuses("expired", read, crl, at=NOW + 500 * DAY)  # the authority itself ended


def test_a_foreign_list_is_refused():
    other = make_authority(Randomness.seeded(8), "test-authority", at=NOW - DAY, valid_days=365)
    named = make_authority(Randomness.seeded(1), "other", at=NOW - DAY, valid_days=365)
    refuses("revocations.issuer", read, made(ca=other))  # another key under the same name
    refuses("revocations.issuer", read, made(ca=named))  # the same key under another name
    member = Authority(SigningKey.generate(Randomness.seeded(9)), CA.certificate)
    refuses("revocations.issuer", read, made(ca=member))


def test_an_authority_that_may_sign_certificates_alone_signs_no_list():
    parsed = x509.load_pem_x509_certificate(CA.certificate)
    usage = parsed.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.crl_sign
    builder = x509.CertificateBuilder(
        issuer_name=parsed.subject,
        subject_name=parsed.subject,
        public_key=parsed.public_key(),
        serial_number=1,
        not_valid_before=NOW - DAY,
        not_valid_after=NOW + DAY,
    )
    builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
    only = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    old = builder.add_extension(only, critical=True).sign(CA.key._key, None)
    ca = Authority(CA.key, old.public_bytes(Encoding.PEM))
    detail = refuses("revocations.issuer", read, made(ca=ca), ca=ca)
    assert "may not sign lists" in detail


NUMBER = (x509.CRLNumber(4), False)


def forged(*, extensions=(NUMBER,), entry=()):
    """A list signed by the true authority, with anything in it."""
    subject = x509.load_pem_x509_certificate(CA.certificate).subject
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=subject, last_update=NOW, next_update=NOW + DAY
    )
    revoked = x509.RevokedCertificateBuilder(serial_number=5, revocation_date=NOW)
    for value, critical in entry:
        revoked = revoked.add_extension(value, critical=critical)
    builder = builder.add_revoked_certificate(revoked.build())
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(CA.key._key, None).public_bytes(Encoding.PEM)


def test_what_limits_a_list_is_refused_and_what_explains_it_is_not():
    assert read(forged()).serials == {5}
    assert read(forged(entry=[(x509.CRLReason(x509.ReasonFlags.key_compromise), False)])).number
    difference = forged(extensions=[NUMBER, (x509.DeltaCRLIndicator(3), True)])
    refuses("revocations.critical", read, difference)
    issuer = x509.CertificateIssuer([x509.DNSName("other")])
    refuses("revocations.critical", read, forged(entry=[(issuer, True)]))


def test_a_part_that_cannot_be_read_is_refused_although_it_is_signed():
    number = x509.UnrecognizedExtension(x509.CRLNumber.oid, b"\xff\xff")
    refuses("revocations.format", read, forged(extensions=[(number, False)]))
    reason = x509.UnrecognizedExtension(x509.CRLReason.oid, b"\xff\xff")
    refuses("revocations.format", read, forged(entry=[(reason, False)]))


def test_a_list_needs_a_number_of_its_own():
    refuses("revocations.number", read, forged(extensions=[]))
    refuses("revocations.number", read, forged(extensions=[(x509.CRLNumber(0), False)]))
    refuses("revocations.number", made, number=0)
    refuses("valid_days", made, days=0)


def test_a_list_without_an_end_is_refused():
    crl = made(number=1)
    tbs = x509.load_pem_x509_crl(crl).tbs_certlist_bytes
    start, end = tbs.index(b"\x17\x0d"), tbs.rindex(b"\x17\x0d")
    assert start < end == start + 15
    assert tbs[:2] == b"\x30" + bytes([len(tbs) - 2])
    rest = tbs[2:end] + tbs[end + 15 :]
    shorter = b"\x30" + encoded(len(rest)) + rest
    body = shorter + bytes.fromhex("300506032b6570034100") + CA.key._key.sign(shorter)
    der = base64.b64encode(b"\x30" + encoded(len(body)) + body).decode()
    lines = ["-----BEGIN X509 CRL-----", *textwrap.wrap(der, 64), "-----END X509 CRL-----"]
    endless = "".join(line + "\n" for line in lines).encode()
    assert x509.load_pem_x509_crl(endless).next_update_utc is None
    assert "must say when it ends" in refuses("revocations.expired", read, endless)


def encoded(length):
    size = (length.bit_length() + 7) // 8
    return bytes([length]) if length < 128 else bytes([128 + size]) + length.to_bytes(size, "big")


# ---- which list is later


def later(held, shown, *, at=NOW):
    return later_revocations(held, shown, CA.certificate, at=at)


def test_a_later_list_takes_the_place_of_an_earlier_one_and_never_the_reverse():
    first, second = made(number=1), made(7, number=2)
    assert later(b"", first) == first
    assert later(first, second) == second
    assert later(second, second) == second
    detail = refuses("revocations.rollback", later, second, first)
    assert "number 1 is older than number 2" in detail
    refuses("revocations.rollback", later, second, made(number=2))  # one number, another list
    assert later(second, made(7, number=2, days=60))  # the same serials, a later end


def test_an_ended_list_is_renewed_and_an_ended_or_foreign_one_never_accepted():
    ended = made(number=3, days=1)
    at = NOW + 2 * DAY
    assert later(ended, made(number=4, at=at), at=at)
    refuses("revocations.expired", later, b"", ended, at=at)
    other = make_authority(Randomness.seeded(8), "test-authority", at=NOW - DAY, valid_days=365)
    refuses("revocations.issuer", later, made(), made(number=2, ca=other))


# ---- bytes


def test_one_list_has_one_encoding():
    pem = made(5)
    for bad in (
        b"",
        pem + pem,
        pem + b"\n",
        b"comment\n" + pem,
        pem.replace(b"\n", b"\r\n"),
        x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER),
        CA.certificate,
    ):
        refuses("revocations.format", read, bad)


@given(st.binary(max_size=300) | st.integers(0, 2000).map(lambda i: (i, True)))
@settings(max_examples=150, deadline=None)
def test_garbage_and_every_altered_byte_give_a_named_error(what):
    pem = bytearray(made(5, 6, 7))
    if isinstance(what, tuple):
        pem[what[0] % len(pem)] ^= 1 + what[0] % 7
        what = bytes(pem)
    with pytest.raises(ProtocolError, match=r"^certificate\.revocations\."):
        read(what)
