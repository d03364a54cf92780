"""Approvals made with the authority's own key, kit or no kit."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedattn.certificates import (
    Authority,
    certify,
    make_request,
    node_key_sha256,
)
from fedattn.federation.keys import load_node_key, openssh
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

NOW = datetime.now(UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def ca_of(kit):
    key = SigningKey.load(kit.authority / "authority-key.pem")
    return Authority(key, (kit.authority / "authority.pem").read_bytes())


def rewritten(path, target, **changes):
    """The JSON document in `path` with changes, in `target`."""
    target.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


def issue(kit, device, name, target, *, ca=None, at=NOW - HOUR, days=30, **changes):
    """An approval that the authority's key made, kit or no kit, in `target`."""
    identity = SigningKey.load(device / "identity.pem")
    public = openssh(load_node_key(device / "node-key").public_key())
    request = make_request(
        changes.get("identity", identity), name, node_key_sha256=changes.get(
            "sha256", node_key_sha256(public))
    )  # fmt: skip
    stream = Randomness.from_os()
    pem = certify(ca or ca_of(kit), request, name, stream, at=at, valid_days=days)
    node_key = changes.get("node_key", public.decode())
    approval = {"kind": "approval", "name": name, "certificate": pem.decode(), "node_key": node_key}
    target.write_text(json.dumps(approval))
    return target


def begun_earlier(ca, at):
    """The same authority's certificate with an earlier begin, to make an old member's."""
    parsed = x509.load_pem_x509_certificate(ca.certificate)
    builder = x509.CertificateBuilder(
        issuer_name=parsed.subject,
        subject_name=parsed.subject,
        public_key=parsed.public_key(),
        serial_number=parsed.serial_number,
        not_valid_before=at,
        not_valid_after=at + 99 * DAY,
    )
    for each in parsed.extensions:
        builder = builder.add_extension(each.value, critical=each.critical)
    return builder.sign(ca.key._key, None).public_bytes(Encoding.PEM)
