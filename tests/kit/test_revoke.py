"""Whose certificate is taken back, and how everybody learns of it."""

from __future__ import annotations

from fedattn.federation import admitted
from fedattn.federation.authority import revocations
from tests.kit.forge import DAY, NOW
from tests.kit.kit import facts, fedattn, members, refused


def test_a_revoked_member_is_out_everywhere_and_others_are_not(kit):
    for name in ("ann", "bob"):
        kit.member(name)
    said = fedattn("revoke", kit.authority, "bob")
    assert "list 2: 1 revoked" in said
    assert members(kit.authority) == members(kit.server) == {"ann": "valid", "bob": "revoked"}
    assert [approval.name for approval in admitted(kit.server, at=NOW)] == ["ann"]
    refused("the certificate of `bob` is revoked already", "revoke", kit.authority, "bob")
    refused("no certificate of `eve`; there are: ann, bob", "revoke", kit.authority, "eve")
    message = "certificate.revoked: the authority revoked it"
    refused(message, "admit", kit.server, kit.issued("bob"))


def test_an_older_list_never_replaces_a_newer_one(kit, tmp_path):
    ann = kit.member("ann")
    old = tmp_path / "old.crl"
    old.write_bytes((kit.authority / "revoked.crl").read_bytes())
    fedattn("revoke", kit.authority, "ann")
    new = kit.authority / "revoked.crl"
    for folder in (ann, kit.server):
        fedattn("revoke", folder, "--list", new)
        said = refused("number 1 is older than number 2", "revoke", folder, "--list", old)
        assert str(old) in said
        assert (folder / "revoked.crl").read_bytes() == new.read_bytes()
        assert revocations(folder, at=NOW).number == 2


def test_a_foreign_or_broken_list_is_refused(kit, tmp_path):
    ann = kit.member("ann")
    fedattn("init", tmp_path / "other", "--host", "127.0.0.1")
    foreign = tmp_path / "other" / "authority" / "revoked.crl"
    message = "certificate.revocations.issuer: not issued by this federation's authority"
    refused(message, "revoke", ann, "--list", foreign)
    (ann / "revoked.crl").write_bytes(foreign.read_bytes())
    refused(message, "start", ann)
    (tmp_path / "broken.crl").write_bytes(b"garbage")
    refused("not an X.509 CRL in PEM", "revoke", kit.server, "--list", tmp_path / "broken.crl")


def test_an_ended_list_stops_runs_until_it_is_renewed(kit, set_time):
    kit.member("ann")
    set_time(NOW + 100 * DAY)
    message = "revoked.crl: certificate.revocations.expired: the list was valid until"
    said = refused(message, "run", kit.server, "config.yaml")
    assert "have the authority renew it (`fedattn federation revoke`)" in said
    refused(message, "admit", kit.server, kit.issued("ann"))
    assert "(ended)" in facts(kit.server)["revoked"]
    assert "list 2: 0 revoked" in fedattn("revoke", kit.authority)
    assert revocations(kit.server, at=NOW + 100 * DAY).number == 2
    assert revocations(kit.invitation, at=NOW + 100 * DAY).number == 2
