"""Keys of the kinds that Flower and TLS want: P-256, made here, written once, never sent."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from fedattn.errors import RunError
from fedattn.federation.folders import read, write_private


def new_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A Flower node key at `path`: OpenSSH, not encrypted, as `--auth-supernode-private-key`."""
    key = ec.generate_private_key(ec.SECP256R1())  # OS entropy
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key


def new_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A TLS server's key at `path`: PKCS #8, not encrypted."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The node key at `path`; RunError if it is another kind of file."""
    try:
        key = load_ssh_private_key(read(path), None)
    except (ValueError, TypeError):
        key = None
    return _curve(key, path)


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The TLS key at `path`; RunError if it is another kind of file."""
    try:
        key = load_pem_private_key(read(path), None)
    except (ValueError, TypeError):
        key = None
    return _curve(key, path)


def openssh(key: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as one OpenSSH line, which `flwr supernode register` reads."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def _curve(key: object, path: Path) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RunError(f"{path}: not an unencrypted elliptic-curve key; restore it from the backup")
    return key
