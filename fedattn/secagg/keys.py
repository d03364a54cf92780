"""Key agreement, key derivation and the encrypted packets, all with constant labels.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM (NIST SP 800-38D) from `cryptography`.
Every derived key takes (label, instruction hash, indices), so that a key of one purpose, round
or pair never serves another, even where a peer copies a public key.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedattn.randomness import Randomness
from fedattn.secagg.checks import require
from fedattn.secagg.shamir import SHARE_BYTES

SEED_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
PACKET_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES

PAIRWISE_MASK = b"fedattn/v1/pairwise-mask"
SELF_MASK = b"fedattn/v1/self-mask"
TRANSPORT = b"fedattn/v1/share-transport"
SEED_COMMITMENT = b"fedattn/v1/self-seed-commitment"

_FIELD_PRIME = 2**255 - 19
# the u coordinates of order 1, 2, 4 and 8 on the curve and its twist (RFC 7748, section 6.1)
_LOW_ORDER = frozenset(
    (
        0,
        1,
        _FIELD_PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
)


def load(secret: bytes) -> X25519PrivateKey:
    """The X25519 private key of 32 secret bytes."""
    return X25519PrivateKey.from_private_bytes(secret)


def public_bytes(secret: bytes) -> bytes:
    """The 32-byte X25519 public key of 32 secret bytes."""
    return load(secret).public_key().public_bytes_raw()


def require_usable(public_key: bytes, index: int) -> None:
    """Refuse an X25519 key that is not canonical or of low order: ProtocolError("keys.point").

    Another encoding of one point would pass as a distinct key; a point of low order makes every
    agreement with it zero (RFC 7748, section 6.1), known to everybody.
    """
    u = int.from_bytes(public_key, "little")
    require(
        u < _FIELD_PRIME and u not in _LOW_ORDER,
        "keys.point",
        f"member {index}: not a canonical X25519 key of large order",
    )


def seed_commitment(instruction_hash: bytes, index: int, seed: bytes) -> bytes:
    """SHA-256 of label, instruction, owner and the uniform 256-bit self seed."""
    return hashlib.sha256(SEED_COMMITMENT + instruction_hash + _index(index) + seed).digest()


def self_mask_key(instruction_hash: bytes, index: int, seed: bytes) -> bytes:
    """The 32-byte mask key of a member's own self mask."""
    return _hkdf(seed, SELF_MASK + instruction_hash + _index(index))


def pairwise_mask_key(
    private: X25519PrivateKey, peer_key: bytes, instruction_hash: bytes, a: int, b: int
) -> bytes:
    """The 32-byte mask key that members a and b share; the same from both sides."""
    low, high = sorted((a, b))
    info = PAIRWISE_MASK + instruction_hash + _index(low) + _index(high)
    return _hkdf(private.exchange(X25519PublicKey.from_public_bytes(peer_key)), info)


def seal(
    private: X25519PrivateKey,
    peer_key: bytes,
    instruction_hash: bytes,
    sender: int,
    recipient: int,
    plaintext: bytes,
    randomness: Randomness,
) -> bytes:
    """nonce 12 | AES-256-GCM of `plaintext` | tag 16, from sender to recipient.

    The key is one per *direction* (sender, then recipient, in the HKDF info), so a packet is bound
    to both and cannot be reflected; the nonce is random, so a step run twice by mistake does not
    repeat one.
    """
    key, info = _transport_key(private, peer_key, instruction_hash, sender, recipient)
    nonce = randomness.bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, info)


def unseal(
    private: X25519PrivateKey,
    peer_key: bytes,
    instruction_hash: bytes,
    sender: int,
    recipient: int,
    packet: bytes,
) -> bytes | None:
    """The plaintext of a packet, or None if it was not sealed by this sender for this recipient."""
    key, info = _transport_key(private, peer_key, instruction_hash, sender, recipient)
    try:
        return AESGCM(key).decrypt(packet[:NONCE_BYTES], packet[NONCE_BYTES:], info)
    except InvalidTag:
        return None


def _transport_key(
    private: X25519PrivateKey, peer_key: bytes, instruction_hash: bytes, sender: int, recipient: int
) -> tuple[bytes, bytes]:
    info = TRANSPORT + instruction_hash + _index(sender) + _index(recipient)
    return _hkdf(private.exchange(X25519PublicKey.from_public_bytes(peer_key)), info), info


def _hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def _index(index: int) -> bytes:
    return index.to_bytes(4, "big")
