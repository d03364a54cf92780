"""The SuperLink's own certificate: TLS between it, its front and its ServerApp, on this machine.

Flower's SuperLink authenticates SuperNodes only if it speaks TLS itself. It listens on 127.0.0.1
alone, behind the front whose certificate the federation's authority issued; this second one is
made here, for the address 127.0.0.1, signed by nobody else, and never leaves the folder.
"""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedattn.flower.deployment.folders import replace

CERTIFICATE: Final = "loopback.pem"
KEY: Final = "loopback-key.pem"
NAME: Final = "superlink.loopback"
_LOCK: Final = "loopback.lock"
_VALID_DAYS: Final = 365
_RENEW_DAYS: Final = 30


def ensure_loopback_certificate(folder: Path) -> None:
    """Make `loopback.pem` and its key (0600), or renew them within 30 days of their end.

    One process at a time: SuperLink and front may be started at once, each on its own.
    """
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _ensure(folder)


def _ensure(folder: Path) -> None:
    now = datetime.now(UTC)
    path = folder / CERTIFICATE
    if path.exists() and (folder / KEY).exists():
        current = x509.load_pem_x509_certificate(path.read_bytes())
        if current.not_valid_after_utc - now > timedelta(days=_RENEW_DAYS):
            return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedattn loopback")])
    subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(
                # (nginx compares a name only, Python's clients the address)
                [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName(NAME)]
            ),
            critical=False,
        )
        .add_extension(subject, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace(folder / KEY, secret, mode=0o600)
    replace(path, made.public_bytes(Encoding.PEM))


def _usage() -> x509.KeyUsage:
    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    none = dict.fromkeys((*rest, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=False, **none)
