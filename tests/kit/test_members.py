"""Who becomes a member, who is let in, and whose certificate is taken back."""

from __future__ import annotations

import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedattn.certificates import (
    make_request,
    node_key_sha256,
    read_member,
    sign_request,
    valid_until,
)
from fedattn.federation import admitted, require_ready
from fedattn.federation.documents import read_approval
from fedattn.federation.keys import load_node_key, openssh
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey, fingerprint
from tests.kit.forge import DAY, NOW, rewritten
from tests.kit.kit import Kit, facts, fedattn, members, refused

# ---- approval


def test_a_device_becomes_a_member_step_by_step(kit):
    device = kit.join("ann")
    said = fedattn("approve", kit.authority, device / "request.json", "--yes")
    assert "approved" in said
    fedattn("join", device, "--approval", kit.issued("ann"))
    fedattn("admit", kit.server, kit.issued("ann"))
    member = read_member(
        (device / "certificate.pem").read_bytes(), (device / "authority.pem").read_bytes(), at=NOW
    )
    assert member.name == "ann"
    assert member.public_key == SigningKey.load(device / "identity.pem").public_bytes
    public = openssh(load_node_key(device / "node-key").public_key())
    assert member.node_key_sha256 == node_key_sha256(public)
    (let_in,) = admitted(kit.server, at=NOW)
    assert (let_in.name, let_in.node_key.encode()) == ("ann", public)
    assert (device / "node-key.pub").read_bytes() == public + b"\n"
    for folder in (device, kit.server):
        require_ready(folder, at=NOW)


def test_approve_shows_name_identity_and_node_key_whole(kit):
    device = kit.join("ann")
    request = device / "request.json"
    shown = fedattn("approve", kit.authority, request, answer="y\n")
    identity = fingerprint(SigningKey.load(device / "identity.pem").public_bytes)
    node_key = node_key_sha256((device / "node-key.pub").read_bytes())
    assert "ann" in shown
    for mark in (identity, node_key):
        for start in range(0, 64, 32):
            groups = [mark[i : i + 8] for i in range(start, start + 32, 8)]
            assert " ".join(groups) in shown
    assert "Compare the fingerprint" in shown


def test_approve_wants_a_yes_or_the_fingerprint(kit):
    device = kit.join("ann")
    approve = ["approve", kit.authority, device / "request.json"]
    refused("nobody answered; give --fingerprint or --yes", *approve)
    refused("nothing is approved", *approve, answer="n\n")
    wrong = "ab" * 32
    said = "its fingerprint is not the one given; nothing is approved"
    refused(said, *approve, "--fingerprint", wrong)
    refused(said, *approve, "--fingerprint", wrong, "--yes")
    assert members(kit.authority) == {}
    mark = facts(device)["identity"]
    typed = " ".join(mark[i : i + 8] for i in range(0, 64, 8)).upper()
    fedattn(*approve, "--fingerprint", typed)
    assert members(kit.authority) == {"ann": "valid"}


def test_a_name_and_a_key_are_given_once(kit, tmp_path):
    device = kit.member("ann")
    approve = ["approve", kit.authority]
    other = kit.join("ann", folder=tmp_path / "other")
    said = refused(
        "name_taken: `ann` has a valid certificate", *approve, other / "request.json", "--yes"
    )
    assert f"fedattn federation revoke {kit.authority} ann" in said
    # the same identity, the same node key: under another name
    identity, node_key = (
        SigningKey.load(device / "identity.pem"),
        load_node_key(device / "node-key"),
    )
    taken = {
        "key_taken": (identity, ec.generate_private_key(ec.SECP256R1())),
        "node_key_taken": (SigningKey.generate(Randomness.from_os()), node_key),
    }
    for rule, (signer, node) in taken.items():
        line = openssh(node.public_key())
        pem = make_request(signer, "bob", node_key_sha256=node_key_sha256(line))
        request = rewritten(
            device / "request.json", tmp_path / "request.json", request=pem.decode(),
            node_key=line.decode(), node_key_signature=sign_request(node, pem).hex(),
        )  # fmt: skip
        refused(f"{rule}: `ann` has a valid certificate", *approve, request, "--yes")
    assert members(kit.authority) == {"ann": "valid"}


def test_a_lost_device_is_revoked_and_replaced_under_its_name(kit, tmp_path):
    lost = kit.member("ann")
    fedattn("revoke", kit.authority, "ann")
    assert members(kit.authority) == {"ann": "revoked"}
    new = kit.join("ann", folder=tmp_path / "new")
    fedattn("join", new, "--approval", kit.approve(new))
    fedattn("admit", kit.server, kit.issued("ann"))
    assert members(kit.authority) == members(kit.server) == {"ann": "valid"}
    kept = [path.name for path in kit.issued("ann").parent.iterdir()]
    assert sum(name.startswith("ann.json.old-") for name in kept) == 1
    fedattn("revoke", lost, "--list", kit.authority / "revoked.crl")
    refused("certificate.revoked: the authority revoked it", "start", lost)


def test_a_certificate_that_ended_is_renewed_for_the_same_key(kit, set_time):
    device = kit.member("ann")
    set_time(NOW + 400 * DAY)
    fedattn("revoke", kit.authority)  # the list ended, too
    fedattn("revoke", device, "--list", kit.authority / "revoked.crl")
    refused("certificate.expired: the certificate was valid until", "start", device)
    assert members(kit.server) == {"ann": "expired"}
    approval = kit.approve(device)
    fedattn("join", device, "--approval", approval)
    fedattn("admit", kit.server, approval)
    assert members(kit.server) == members(kit.authority) == {"ann": "valid"}


def test_a_valid_certificate_is_renewed_for_the_same_keys_and_nothing_else(kit, set_time):
    device = kit.member("ann")
    first = (device / "certificate.pem").read_bytes()
    set_time(NOW + 80 * DAY)
    approval = kit.approve(device)
    fedattn("join", device, "--approval", approval)
    fedattn("admit", kit.server, approval)
    second = (device / "certificate.pem").read_bytes()
    assert second != first
    assert valid_until(second) > valid_until(first) + 79 * DAY
    assert members(kit.server) == members(kit.authority) == {"ann": "valid"}
    (kept,) = kit.issued("ann").parent.glob("ann.json.old-*")
    (before,) = (kit.server / "admitted").glob("ann.json.old-*")
    assert read_approval(kept).certificate.encode() == first
    assert read_approval(before) == read_approval(kept)
    # the one before does not come back over it
    refused("exists and is valid; --force puts", "join", device, "--approval", kept)
    refused("name_taken: ", "admit", kit.server, kept)


def test_an_older_valid_certificate_of_a_name_keeps_the_name(kit, set_time, tmp_path):
    """A renewal for a day ended; the year before it has not."""
    device = kit.member("ann")
    fedattn("approve", kit.authority, device / "request.json", "--yes", "--valid-days", "1")
    set_time(NOW + 2 * DAY)
    other = kit.join("ann", folder=tmp_path / "other")
    said = "name_taken: `ann` has a valid certificate"
    refused(said, "approve", kit.authority, other / "request.json", "--yes")


def test_a_key_that_was_taken_back_is_certified_no_more(kit):
    """Flower lets no node key in again that it shut out: a new certificate would not help."""
    device = kit.member("ann")
    fedattn("revoke", kit.authority, "ann")
    said = refused(
        "key_revoked: a key of this request was taken back with `ann`",
        *("approve", kit.authority, device / "request.json", "--yes"),
    )
    assert "fedattn federation join ... --force" in said
    assert members(kit.authority) == {"ann": "revoked"}


def test_a_running_server_finds_an_approval_at_every_moment_of_a_renewal(
    kit, set_time, monkeypatch
):
    """Whose approval it does not find it shuts out, and that is for good."""
    device = kit.member("ann")
    set_time(NOW + 30 * DAY)
    approval = kit.approve(device)
    found, path = [], kit.server / "admitted" / "ann.json"
    real = os.fsync

    def fsync(handle):
        found.append(path.exists())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    fedattn("admit", kit.server, approval)
    assert len(found) > 2
    assert all(found)


def test_a_member_whose_certificate_ended_keeps_its_place(kit, set_time):
    kit.member("ann")
    kit.member("bob")
    fedattn("revoke", kit.authority, "bob")
    later = NOW + 400 * DAY
    set_time(later)
    fedattn("revoke", kit.authority)
    assert admitted(kit.server, at=later) == []
    assert [each.name for each in admitted(kit.server, at=None)] == ["ann"]


def test_a_certificate_does_not_outlive_its_authority(tmp_path, set_time):
    kit = Kit(tmp_path)
    fedattn("init", tmp_path / "fed", "--host", "127.0.0.1", "--valid-days", "3")
    device = kit.member("ann")
    assert "(1 days)" in facts(device)["certificate"] or "(2 days)" in facts(device)["certificate"]
    set_time(NOW + 2.5 * DAY)
    other = kit.join("bob")
    said = "within a day; found a new federation"
    refused(said, "approve", kit.authority, other / "request.json", "--yes")
    set_time(NOW + 4 * DAY)
    said = "authority.pem: certificate.expired: the authority was valid until"
    refused(said, "approve", kit.authority, other / "request.json", "--yes")
    refused(said, "join", tmp_path / "x", "--invitation", kit.invitation, "--name", "x",
            "--data", kit.data)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_key_signature": "00"}, "is not signed by the node key that it names"),
        ({"request": "garbage"}, "certificate.format: not a signing request in PEM"),
        (
            {"node_key": "ssh-ed25519 AAAA"},
            "certificate.node_key: not a public key on a NIST curve",
        ),
        ({"node_key": None}, "node_key: Input should be a valid string"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"kind": "approval"}, "is no request"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_request_that_does_not_hold_is_refused(kit, tmp_path, change, message):
    device = kit.join("ann")
    bad = rewritten(device / "request.json", tmp_path / "bad.json", **change)
    assert str(bad) in refused(message, "approve", kit.authority, bad, "--yes")
    assert members(kit.authority) == {}


def test_a_node_key_that_another_device_holds_cannot_be_asked_for(kit, tmp_path):
    ann, eve = kit.join("ann"), kit.join("eve")
    line = (ann / "node-key.pub").read_bytes().strip()
    identity = SigningKey.load(eve / "identity.pem")
    pem = make_request(identity, "eve", node_key_sha256=node_key_sha256(line))
    signature = sign_request(load_node_key(eve / "node-key"), pem)
    stolen = rewritten(
        eve / "request.json", tmp_path / "bad.json", request=pem.decode(), node_key=line.decode(),
        node_key_signature=signature.hex(),
    )  # fmt: skip
    message = "the request is not signed by the node key that it names"
    refused(message, "approve", kit.authority, stolen, "--yes")
    other = rewritten(eve / "request.json", tmp_path / "other.json", node_key=line.decode())
    refused("the request names another node key", "approve", kit.authority, other, "--yes")


def test_what_is_no_json_is_refused(kit, tmp_path):
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    refused("is not a JSON object", "approve", kit.authority, tmp_path / "bad.json", "--yes")
    refused("no such file", "approve", kit.authority, tmp_path / "none.json", "--yes")


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "../a", "a" * 65])
def test_a_name_that_is_no_file_name_is_refused(kit, tmp_path, name):
    message = "certificate.name: must be 1..64 of A-Za-z0-9._-"
    refused(message, "join", tmp_path / "x", "--invitation", kit.invitation,
            f"--name={name}", "--data", kit.data)  # fmt: skip
    assert not (tmp_path / "x").exists()


# ---- joining


def test_a_device_pins_the_authority_that_it_expects(kit, tmp_path):
    arguments = ["--invitation", kit.invitation, "--name", "x", "--data", kit.data]
    said = "not the one that was expected"
    refused(said, "join", tmp_path / "x", *arguments, "--authority", "ab" * 32)
    assert not (tmp_path / "x").exists()
    known = facts(kit.invitation)["authority"]
    fedattn("join", tmp_path / "x", *arguments, "--authority", known.upper())
    pinned = (tmp_path / "x" / "authority.pem").read_bytes()
    assert pinned == (kit.authority / "authority.pem").read_bytes()


def test_a_device_without_conversations_or_arguments_is_refused(kit, tmp_path):
    arguments = ["join", tmp_path / "x", "--invitation", kit.invitation, "--name", "x"]
    refused("no such file; name this device's conversations", *arguments, "--data", tmp_path / "no")
    refused("give --invitation DIR, --name NAME and --data FILE, or --approval FILE", *arguments)
    assert not (tmp_path / "x").exists()


def test_show_says_how_things_stand_and_nothing_secret(kit):
    device = kit.member("ann")
    shown = fedattn("show", device)
    for word in ("ann", "test federation", "127.0.0.1:8443", "held by", "0 in list 1"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 80
    secret = (device / "superexec-secret").read_bytes().hex()
    assert secret not in shown.replace(" ", "")
    told = json.loads(fedattn("show", kit.server, "--json"))
    assert told["kind"] == "server"
    assert told["members"][0]["identity"] == facts(device)["identity"]
