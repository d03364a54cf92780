"""What a device does not install and a server does not admit, and why."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.asymmetric import ec

from fedattn.certificates import (
    Authority,
    certify_server,
    make_authority,
    make_server_request,
    node_key_sha256,
)
from fedattn.federation.keys import openssh
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey
from tests.kit.forge import DAY, NOW, begun_earlier, ca_of, issue, rewritten
from tests.kit.kit import fedattn, members, refused


def refusals(kit, device, approval, message):
    """Device and server both refuse the approval, and keep what they had."""
    assert str(approval) in refused(message, "join", device, "--approval", approval)
    assert str(approval) in refused(message, "admit", kit.server, approval)
    assert not (device / "certificate.pem").exists()
    assert members(kit.server) == {}


def test_foreign_expired_and_revoked_certificates_are_refused(kit, tmp_path):
    device, target = kit.join("ann"), tmp_path / "bad.json"

    other = make_authority(
        Randomness.from_os(), "fedattn-authority", at=NOW - 9 * DAY, valid_days=99
    )
    foreign = issue(kit, device, "ann", target, ca=other)
    refusals(kit, device, foreign, "certificate.issuer: not issued by this federation's authority")
    early = Authority(ca_of(kit).key, begun_earlier(ca_of(kit), NOW - 9 * DAY))
    ended = issue(kit, device, "ann", target, ca=early, at=NOW - 5 * DAY, days=1)
    refusals(kit, device, ended, "certificate.expired: the certificate was valid until")
    approval = kit.approve(device)
    fedattn("revoke", kit.authority, "ann")
    fedattn("revoke", device, "--list", kit.authority / "revoked.crl")
    refusals(kit, device, approval, "certificate.revoked: the authority revoked it")


def test_a_certificate_that_names_another_node_key_is_refused(kit, tmp_path):
    device, target = kit.join("ann"), tmp_path / "bad.json"
    other = openssh(ec.generate_private_key(ec.SECP256R1()).public_key()).decode()
    wrong = issue(kit, device, "ann", target, node_key=other)
    refusals(kit, device, wrong, "certificate.node_key: names another node key than the approval")
    none = issue(kit, device, "ann", target, sha256=None)
    refusals(kit, device, none, "certificate.node_key: names no node key")
    sha256 = node_key_sha256(other.encode())
    elsewhere = issue(kit, device, "ann", target, node_key=other, sha256=sha256)
    message = "certificate.node_key: is for another node key than this device's"
    refused(message, "join", device, "--approval", elsewhere)


def test_a_certificate_of_another_device_is_refused(kit, tmp_path):
    device, target = kit.join("ann"), tmp_path / "bad.json"
    identity = SigningKey.generate(Randomness.from_os())
    other = issue(kit, device, "ann", target, identity=identity)
    message = "certificate.key: is for another identity than this device's"
    refused(message, "join", device, "--approval", other)
    renamed = issue(kit, device, "bob", target)
    refused("certificate.name: is not for `ann`", "join", device, "--approval", renamed)
    lied = rewritten(renamed, tmp_path / "lied.json", name="ann")
    refusals(kit, device, lied, "certificate.name: is for another name than ann")


def test_a_tls_certificate_is_no_members(kit, tmp_path):
    device = kit.join("ann")
    key = ec.generate_private_key(ec.SECP256R1())
    stream = Randomness.from_os()
    pem = certify_server(
        ca_of(kit), make_server_request(key, "ann"), "ann", stream, at=NOW, valid_days=9
    )
    line = openssh(key.public_key()).decode()
    approval = {"kind": "approval", "name": "ann", "certificate": pem.decode(), "node_key": line}
    (tmp_path / "bad.json").write_text(json.dumps(approval))
    refusals(kit, device, tmp_path / "bad.json", "certificate.key_type: must hold an Ed25519 key")
    (served,) = (kit.authority / "servers").iterdir()
    refused("is no approval; give the file that", "join", device, "--approval", served)


def test_a_members_certificate_is_no_tls_servers(kit, tmp_path):
    device = kit.join("ann")
    pem = json.loads(kit.approve(device).read_text())["certificate"]
    approval = {"kind": "server-approval", "certificate": pem}
    (tmp_path / "bad.json").write_text(json.dumps(approval))
    message = "certificate.key_type: must hold a P-256 key"
    refused(message, "server", kit.server, "--approval", tmp_path / "bad.json")
    refused("is no server approval", "server", kit.server, "--approval", kit.issued("ann"))


def test_a_valid_certificate_is_replaced_by_force_alone(kit, tmp_path):
    device = kit.member("ann")
    first = (device / "certificate.pem").read_bytes()
    fedattn("join", device, "--approval", kit.issued("ann"))  # the same again: nothing to do
    fedattn("admit", kit.server, kit.issued("ann"))
    second = issue(kit, device, "ann", tmp_path / "second.json")
    said = "exists and is valid; --force puts the new one in its place"
    refused(said, "join", device, "--approval", second)
    refused("name_taken", "admit", kit.server, second)
    assert (device / "certificate.pem").read_bytes() == first
    fedattn("join", device, "--approval", second, "--force")
    fedattn("admit", kit.server, second, "--force")
    (kept,) = device.glob("certificate.pem.old-*")
    assert kept.read_bytes() == first
    assert members(kit.server) == {"ann": "valid"}


def test_a_node_key_is_admitted_under_one_name(kit, tmp_path):
    device = kit.member("ann")
    identity = SigningKey.generate(Randomness.from_os())
    twin = issue(kit, device, "bob", tmp_path / "twin.json", identity=identity)
    refused("node_key_taken", "admit", kit.server, twin)
    assert members(kit.server) == {"ann": "valid"}
