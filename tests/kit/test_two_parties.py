"""Authority and server in two hands: each keeps its keys, and devices learn who holds what."""

from __future__ import annotations

import json

import pytest
import yaml

from fedattn.federation import read_settings, require_ready
from fedattn.signing import SigningKey, fingerprint
from tests.kit.forge import DAY, NOW, rewritten
from tests.kit.kit import Kit, facts, fedattn, refused


class TwoParties(Kit):
    """The notary's folders and the operator's, with nothing between them but public files."""

    @property
    def authority(self):
        return self.root / "notary" / "authority"

    @property
    def invitation(self):
        return self.root / "notary" / "invitation"

    @property
    def server(self):
        return self.root / "operator"

    def make_server(self, *more):
        arguments = ["--host", "server.example.org", "--invitation", self.invitation]
        fedattn("server", self.server, *arguments, "--port", "443", *more)
        return self.server / "request.json"

    def approve_server(self):
        fedattn("approve", self.authority, self.server / "request.json", "--yes")
        return self.authority / "servers" / "server.example.org.json"


@pytest.fixture
def parties(tmp_path):
    made = TwoParties(tmp_path)
    fedattn(
        "init", tmp_path / "notary", "--authority-only", "--held-by", "the notary", "--name", "f"
    )
    return made


def test_two_parties_found_a_federation_and_a_device_joins_it(parties):
    parties.make_server()
    refused("tls.pem: missing; send request.json", "start", parties.server)
    fedattn("server", parties.server, "--approval", parties.approve_server())
    assert require_ready(parties.server, at=NOW) == "server"
    device = parties.member("ann")
    told = yaml.safe_load((device / "federation.yaml").read_text())
    key = SigningKey.load(parties.server / "server.pem")
    assert told == {
        "name": "f", "authority_held_by": "the notary", "host": "server.example.org", "port": 443,
        "server_key": fingerprint(key.public_bytes),
    }  # fmt: skip
    assert read_settings(parties.server).authority_held_by == "the notary"
    assert facts(device)["held by"] == "the notary"


def test_one_party_says_so(kit):
    assert read_settings(kit.server).authority_held_by == "server"
    assert facts(kit.join("ann"))["held by"] == "server"


def test_neither_party_has_the_others_key(parties):
    parties.make_server()
    fedattn("server", parties.server, "--approval", parties.approve_server())
    notary = [p for p in (parties.root / "notary").rglob("*") if p.is_file()]
    operator = [p for p in parties.server.rglob("*") if p.is_file()]
    private = {p.name for p in notary + operator if b"PRIVATE KEY" in p.read_bytes()}
    assert private == {"authority-key.pem", "server.pem", "tls-key.pem"}
    for mine, others in ((notary, operator), (operator, notary)):
        for path in mine:
            if b"PRIVATE KEY" in path.read_bytes():
                body = b"".join(path.read_bytes().splitlines()[1:-1])
                assert not any(body in other.read_bytes() for other in others)


def test_an_invitation_without_a_server_invites_nobody(parties, tmp_path):
    parties.make_server()
    with pytest.raises(Exception, match="names no server yet"):
        parties.join("ann")
    assert not (tmp_path / "device-ann").exists()
    assert facts(parties.invitation)["server"] == "none approved yet"


def test_approve_shows_the_server_and_takes_its_fingerprint(parties):
    request = parties.make_server()
    mark = facts(parties.server)["server key"]
    said = "its fingerprint is not the one given"
    refused(said, "approve", parties.authority, request, "--fingerprint", "ab" * 32)
    shown = fedattn("approve", parties.authority, request, "--fingerprint", mark)
    for word in ("the server of the federation", "server.example.org", "443", mark[:8]):
        assert word in shown


def test_a_second_server_with_another_key_is_refused(parties):
    parties.make_server()
    parties.approve_server()
    request = parties.make_server("--force")
    said = refused("server_taken", "approve", parties.authority, request, "--yes")
    assert "another key" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"port": 444}, "is not signed by the server key that it names"),
        ({"server_key": "ab" * 32}, "is not signed by the server key that it names"),
        ({"port": 0}, "port: Input should be greater than or equal to 1"),
        ({"request": "garbage"}, "certificate.format"),
    ],
    ids=["port", "server_key", "range", "request"],
)
def test_a_servers_request_that_was_altered_is_refused(parties, tmp_path, change, message):
    bad = rewritten(parties.make_server(), tmp_path / "bad.json", **change)
    refused(message, "approve", parties.authority, bad, "--yes")


def test_a_tls_certificate_for_another_host_or_key_is_refused(parties, tmp_path):
    parties.make_server()
    approval = parties.approve_server()
    other = TwoParties(tmp_path / "elsewhere")
    arguments = ["--invitation", parties.invitation, "--port", "443"]
    fedattn("server", other.server, "--host", "other.example.org", *arguments)
    said = "certificate.host: is for server.example.org, not for other.example.org"
    refused(said, "server", other.server, "--approval", approval)
    fedattn("server", other.server, "--host", "server.example.org", *arguments, "--force")
    said = "certificate.key: is for another key than this server's"
    refused(said, "server", other.server, "--approval", approval)


def test_a_tls_certificate_is_renewed_over_the_same_keys(parties, set_time):
    parties.make_server()
    fedattn("server", parties.server, "--approval", parties.approve_server())
    keys = [(parties.server / name).read_bytes() for name in ("server.pem", "tls-key.pem")]
    later = NOW + 400 * DAY
    set_time(later)
    refused("tls.pem: certificate.expired", "start", parties.server)
    fedattn("revoke", parties.authority)
    fedattn("revoke", parties.server, "--list", parties.authority / "revoked.crl")
    fedattn("server", parties.server, "--renew")
    fedattn("server", parties.server, "--approval", parties.approve_server())
    require_ready(parties.server, at=later)
    assert [(parties.server / name).read_bytes() for name in ("server.pem", "tls-key.pem")] == keys
    assert list(parties.server.glob("tls.pem.old-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--authority-only"], "give --held-by NAME"),
        (["--authority-only", "--held-by", "server"], "is what a federation of one party says"),
        (["--authority-only", "--held-by", "a\nb"], "must be 1..64 printable characters"),
        (["--authority-only", "--held-by", "x", "--host", "h"], "no --host"),
        ([], "--host: give the name or address"),
        (["--host", "h", "--held-by", "x"], "the server holds it, unless --authority-only"),
        (["--host", "http://h"], "--host http://h: certificate.host: must be a DNS name"),
        (["--host", "::1"], "--host ::1: an IPv6 address is not possible here; give a name"),
        (["--host", "2001:db8::1"], "an IPv6 address is not possible here; give a name"),
        (["--host", "h", "--name", ""], "--name: must be 1..64 printable characters"),
    ],
)
def test_init_names_what_is_wrong_and_makes_nothing(tmp_path, arguments, message):
    refused(message, "init", tmp_path / "fed", *arguments)
    assert not (tmp_path / "fed").exists()


def test_a_server_needs_host_and_invitation(parties):
    said = "give --host NAME and --invitation DIR, or --approval FILE, or --renew"
    refused(said, "server", parties.server, "--host", "h")
    assert not parties.server.exists()


def test_no_request_and_no_approval_holds_a_private_key(parties):
    device_data = [parties.make_server(), parties.approve_server()]
    for path in device_data:
        assert "PRIVATE" not in path.read_text()
        assert set(json.loads(path.read_text())) <= {
            "kind", "request", "port", "server_key", "signature", "certificate",
        }  # fmt: skip
