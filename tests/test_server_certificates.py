"""The server's TLS certificate is for one host, and no member's certificate is one; node keys."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fedattn.certificates import (
    certify,
    certify_server,
    make_authority,
    make_request,
    make_server_request,
    node_key_sha256,
    read_member,
    read_server,
    read_server_request,
    require_signed_request,
    sign_request,
)
from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

NOW = datetime.now(UTC)  # a TLS library judges by its own clock
DAY = timedelta(days=1)
CA = make_authority(Randomness.seeded(1), "test-authority", at=NOW - 2 * DAY, valid_days=365)
TLS_KEY = ec.generate_private_key(ec.SECP256R1())
IDENTITY = SigningKey.generate(Randomness.seeded(2))


def issue(host="127.0.0.1", *, ca=CA, key=TLS_KEY, at=NOW - DAY, days=30, seed=3):
    request = make_server_request(key, host)
    return certify_server(ca, request, host, Randomness.seeded(seed), at=at, valid_days=days)


def member(*, node_key=None):
    request = make_request(IDENTITY, "ann", node_key_sha256=node_key)
    stream = Randomness.seeded(4)
    return certify(CA, request, "ann", stream, at=NOW - DAY, valid_days=30)


def refuses(check, call, *args, **keywords):
    with pytest.raises(ProtocolError) as caught:
        call(*args, **keywords)
    assert caught.value.check == f"certificate.{check}", str(caught.value)
    return str(caught.value)


def read(pem, host="127.0.0.1", *, at=NOW, **keywords):
    return read_server(pem, CA.certificate, host, at=at, **keywords)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "server.example.org", "localhost"])
def test_a_certificate_is_for_one_host_and_one_key(host):
    server = read(issue(host), host)
    assert (server.host, server.public_key) == (host, TLS_KEY.public_key())
    assert f"is for {host}, not for other" in refuses("host", read, issue(host), "other")
    assert read_server_request(make_server_request(TLS_KEY, host)).host == host


@pytest.mark.parametrize(
    "host", ["", "*.example.org", "Server", "a b", "-a", "a..b", "a" * 64, "http://a", "a:443"]
)
def test_what_is_no_host_is_refused(host):
    refuses("host", make_server_request, TLS_KEY, host)


def test_a_request_is_certified_for_its_own_host_alone():
    request, stream = make_server_request(TLS_KEY, "a"), Randomness.seeded(0)
    refuses("host", certify_server, CA, request, "b", stream, at=NOW, valid_days=1)
    for curve in (ec.SECP384R1(), ec.SECP256K1()):
        other = make_server_request(ec.generate_private_key(curve), "a")
        refuses("key_type", read_server_request, other)
    refuses("format", read_server_request, issue())


def test_time_authority_and_revocation_count_as_for_members():
    pem = issue(days=2)
    refuses("not_yet_valid", read, pem, at=NOW - DAY - timedelta(minutes=1))
    refuses("expired", read, pem, at=NOW + DAY + timedelta(minutes=1))
    refuses("revoked", read, pem, revoked={read(pem).serial})
    other = make_authority(Randomness.seeded(8), "test-authority", at=NOW - 2 * DAY, valid_days=9)
    refuses("issuer", read, issue(ca=other))


def test_a_server_is_no_member_and_a_member_no_server():
    refuses("key_type", read_member, issue(), CA.certificate, at=NOW)
    refuses("key_type", read, member())


def test_a_member_that_holds_a_p256_key_is_no_server_either():
    """The purpose decides, not only the kind of the key."""
    parsed = x509.load_pem_x509_certificate(member())
    builder = x509.CertificateBuilder(
        issuer_name=parsed.issuer,
        subject_name=parsed.subject,
        public_key=TLS_KEY.public_key(),
        serial_number=5,
        not_valid_before=NOW - DAY,
        not_valid_after=NOW + DAY,
    )
    for each in parsed.extensions:
        builder = builder.add_extension(each.value, critical=each.critical)
    pem = builder.sign(CA.key._key, None).public_bytes(Encoding.PEM)
    refuses("key_usage", read, pem)


# ---- what TLS itself makes of them


def tls_key_pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def handshake(tmp_path, certificate, key, *, host="127.0.0.1", ca=CA):
    """Whether a client that pinned `ca` takes the server that shows `certificate` for `host`."""
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "ca.pem").write_bytes(ca.certificate)
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    asked = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    asked.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve():
            connection, _ = listener.accept()
            try:
                with shown.wrap_socket(connection, server_side=True) as tls:
                    tls.sendall(b"!")
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                asked.wrap_socket(raw, server_hostname=host) as tls,
            ):
                return tls.recv(1) == b"!"
        finally:
            thread.join(10)


def test_tls_takes_the_server_for_its_host(tmp_path):
    assert handshake(tmp_path, issue(), tls_key_pem(TLS_KEY))
    assert handshake(tmp_path, issue("localhost"), tls_key_pem(TLS_KEY), host="localhost")


def test_tls_refuses_a_member_as_server(tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(tmp_path, member(), tls_key_pem(IDENTITY._key))


def test_tls_refuses_another_host_another_authority_and_an_expired_certificate(tmp_path):
    key = tls_key_pem(TLS_KEY)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(tmp_path, issue("127.0.0.2"), key)
    other = make_authority(Randomness.seeded(8), "test-authority", at=NOW - 2 * DAY, valid_days=9)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, issue(), key, ca=other)
    old = issue(at=NOW - 1.9 * DAY, days=1)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path, old, key)


# ---- node keys


def public(key, encoding, form):
    return key.public_key().public_bytes(encoding, form)


def test_a_node_key_has_one_hash_in_every_encoding():
    key = ec.generate_private_key(ec.SECP256R1())
    spki = PublicFormat.SubjectPublicKeyInfo
    expected = hashlib.sha256(public(key, Encoding.DER, spki)).hexdigest()
    openssh = public(key, Encoding.OpenSSH, PublicFormat.OpenSSH)
    for encoded in (public(key, Encoding.PEM, spki), openssh, openssh + b" ann@device\n"):
        assert node_key_sha256(encoded) == expected


def test_what_is_no_node_key_is_refused():
    ed, big = ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)
    for key in (ed, big):
        line = public(key, Encoding.OpenSSH, PublicFormat.OpenSSH)
        refuses("node_key", node_key_sha256, line)
    secret = tls_key_pem(TLS_KEY)
    for bad in (b"", b"garbage", secret, issue()):
        refuses("node_key", node_key_sha256, bad)


def test_a_request_shows_that_the_node_key_is_held():
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    line = public(key, Encoding.OpenSSH, PublicFormat.OpenSSH)
    request = make_request(IDENTITY, "ann", node_key_sha256=node_key_sha256(line))
    require_signed_request(line, request, sign_request(key, request))
    for signature in (sign_request(other, request), sign_request(key, request + b"\n"), b""):
        refuses("node_key", require_signed_request, line, request, signature)
