"""Whose certificate is taken back, and how everybody learns of it."""

from __future__ import annotations

import threading
import time

from fedattn.certificates import make_revocations, read_member
from fedattn.errors import FedattnError
from fedattn.federation import admitted, authority
from fedattn.federation.authority import revocations, revoke
from fedattn.federation.documents import read_any_request, read_approval
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


def test_every_certificate_of_a_name_is_taken_back_at_once(kit, set_time, tmp_path):
    device = kit.member("ann")
    kit.member("bob")
    for days in (10, 20):
        set_time(NOW + days * DAY)
        kit.approve(device)  # a renewal; the one before stays valid
    fedattn("revoke", kit.authority, "ann")
    assert members(kit.authority) == {"ann": "revoked", "bob": "valid"}
    taken = revocations(kit.authority, at=None).serials
    ever = [path for path in kit.issued("ann").parent.iterdir() if path.name.startswith("ann.")]
    assert len(ever) == len(taken) == 3
    ca = (kit.authority / "authority.pem").read_bytes()
    for path in ever:
        pem = read_approval(path).certificate.encode()
        assert read_member(pem, ca, at=NOW + 20 * DAY).serial in taken
    refused("the certificate of `ann` is revoked already", "revoke", kit.authority, "ann")
    # whoever takes the name over can be revoked in turn
    new = kit.join("ann", folder=tmp_path / "new")
    kit.approve(new)
    fedattn("revoke", kit.authority, "ann")
    assert len(revocations(kit.authority, at=None).serials) == 4


def test_two_who_revoke_at_once_make_two_lists_and_lose_nobody(kit, monkeypatch):
    names = ("ann", "bob")
    for name in names:
        kit.member(name)
    failed = []

    def slowly(*arguments, **options):
        time.sleep(0.3)  # between the list that was read and the one that is written
        return make_revocations(*arguments, **options)

    def take_back(name):
        try:
            revoke(kit.authority, name, at=NOW)
        except FedattnError as error:
            failed.append(error)

    monkeypatch.setattr(authority, "make_revocations", slowly)
    both = [threading.Thread(target=take_back, args=(name,)) for name in names]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert failed == []
    assert revocations(kit.authority, at=None).number == 3
    assert members(kit.authority) == {"ann": "revoked", "bob": "revoked"}


def test_two_who_approve_at_once_give_a_name_once(kit, monkeypatch, tmp_path):
    asked = [kit.join("ann", folder=tmp_path / place) for place in ("one", "two")]
    made, failed = [], []
    certify = authority.certify

    def slowly(*arguments, **options):
        time.sleep(0.3)  # between the look at who has the name and the approval
        return certify(*arguments, **options)

    def approve(folder):
        request = read_any_request(folder / "request.json")
        try:
            made.append(authority.approve(kit.authority, request, at=NOW))
        except FedattnError as error:
            failed.append(error)

    monkeypatch.setattr(authority, "certify", slowly)
    both = [threading.Thread(target=approve, args=(folder,)) for folder in asked]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(made) == 1
    assert [error.rule for error in failed] == ["name_taken"]
