"""TLS certificates of the federation's server: for one host name or address, by the authority.

A P-256 key, server authentication alone, no member's name: such a certificate never passes as a
member's (`read_member` refuses it), nor a member's as a server's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedattn.certificates.authority import Authority, require_authority
from fedattn.certificates.documents import (
    Document,
    builder,
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
from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness

SUBJECT: Final = "fedattn-server"
_SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_LABEL = re.compile(r"\A(?!-)[a-z0-9-]{1,63}(?<!-)\Z")


@dataclass(frozen=True)
class Server:
    """What a verified TLS certificate says, or a request."""

    host: str
    public_key: ec.EllipticCurvePublicKey
    serial: int | None  # None in a request


def make_server_request(tls_key: ec.EllipticCurvePrivateKey, host: str) -> bytes:
    """A signing request (PKCS #10, PEM) for `host`, a DNS name in lower case or an address."""
    unsigned = x509.CertificateSigningRequestBuilder(subject(SUBJECT))
    unsigned = unsigned.add_extension(_alternative_name(host), critical=False)
    return unsigned.sign(tls_key, SHA256()).public_bytes(Encoding.PEM)


def read_server_request(request: bytes) -> Server:
    """What a request asks for; ProtocolError("certificate.*") if it proves no key or host."""
    asked = parse_request(request)
    return Server(_host(asked), _p256(asked), None)


def certify_server(
    authority: Authority, request: bytes, host: str, stream: Randomness, *, at: datetime,
    valid_days: int
) -> bytes:  # fmt: skip
    """The TLS certificate (PEM) of the server that made `request` for the agreed `host`."""
    ca, asked = require_authority(authority.certificate, at=at), read_server_request(request)
    require(asked.host == host, "host", f"the request is for another host than {host}")
    validity = (at, valid_days)
    unsigned = builder(stream.bytes(20), validity, SUBJECT, asked.public_key, ca.subject)
    unsigned = unsigned.add_extension(x509.BasicConstraints(False, None), critical=True)
    unsigned = unsigned.add_extension(usage(digital_signature=True), critical=True)
    unsigned = unsigned.add_extension(_SERVER, critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key._key.public_key())
    unsigned = unsigned.add_extension(signer, critical=False)
    return signed(unsigned.add_extension(_alternative_name(host), critical=False), authority.key)


def read_server(
    certificate: bytes, authority: bytes, host: str, *, at: datetime, revoked: Collection[int] = ()
) -> Server:
    """What a TLS certificate (PEM) says, verified for `host` under `authority` at time `at`.

    Raises ProtocolError("certificate.*") as `read_member` does, and ".host" for another host.
    """
    ca, parsed = require_authority(authority, at=at), parse(certificate)
    require_member_of(parsed, ca)
    key = _p256(parsed)
    require_end(parsed, _SERVER, "server authentication")
    named = _host(parsed)
    require(named == host, "host", f"is for {named}, not for {host}")
    require_valid(parsed, at, "the certificate")
    require(parsed.serial_number not in revoked, "revoked", "the authority revoked it")
    return Server(host, key, parsed.serial_number)


def _alternative_name(host: str) -> x509.SubjectAlternativeName:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        is_name = len(host) < 254 and all(map(_LABEL.match, host.split(".")))
        require(is_name, "host", "must be a DNS name in lower case, or an address")
        return x509.SubjectAlternativeName([x509.DNSName(host)])
    return x509.SubjectAlternativeName([x509.IPAddress(address)])


def _host(document: Document) -> str:
    found = extension(document, x509.SubjectAlternativeName)
    hosts = [str(entry.value) for entry in found or ()]
    one = len(hosts) == 1 and found == _alternative_name(hosts[0])
    require(one, "host", "must be for one host")
    require(document.subject == subject(SUBJECT), "host", "must not carry another name")
    return hosts[0]


def _p256(document: Document) -> ec.EllipticCurvePublicKey:
    try:
        key = document.public_key()
    except Exception:  # a curve that the library does not know
        key = None
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise ProtocolError("certificate.key_type", "must hold a P-256 key")
    return key
