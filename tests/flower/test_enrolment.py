"""Who takes part in a run: real devices from the kit, behind the embedded grid."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedattn.certificates import Authority, certify, make_request, make_revocations, node_key_sha256
from fedattn.errors import ProtocolError, ThresholdError
from fedattn.federation.keys import openssh
from fedattn.flower import wire
from fedattn.flower.client_app import app
from fedattn.flower.enrolment import enrol, introduce
from fedattn.flower.grid import EmbeddedGrid
from fedattn.flower.observer import SilentObserver
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey
from tests.federation import conversations, tiny, write
from tests.kit.kit import Kit, fedattn

NAMES = ("ann", "bob", "cem", "dee")


class Notes(SilentObserver):
    """Keeps what an operator would read."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


class Deployment:
    """Four members of a federation at nodes 101..104, and what the SuperLink knows of them."""

    def __init__(self, root):
        self.kit = Kit(root)
        fedattn("init", root / "fed", "--host", "127.0.0.1")
        self.folders = [self.kit.member(name) for name in NAMES]
        self.nodes = {
            101 + i: node_key_sha256((folder / "node-key.pub").read_bytes())
            for i, folder in enumerate(self.folders)
        }
        self.config = tiny(write(root / "data.jsonl", conversations()))
        self.run_dir = root / "run"
        self.run_dir.mkdir()
        self.seen = []
        contexts = {101 + i: {"device-dir": str(f)} for i, f in enumerate(self.folders)}
        self.grid = EmbeddedGrid(app, contexts, taps=[self.seen.append])

    @property
    def authority(self):
        return (self.kit.server / "authority.pem").read_bytes()

    @property
    def revoked(self):
        return (self.kit.server / "revoked.crl").read_bytes()

    def enrol(self, **changes):
        """The enrolled nodes, and the notes."""
        notes = Notes()
        given = {"nodes": self.nodes, "revoked": self.revoked, "observer": notes, **changes}
        members = enrol(self.grid, self.config, self.authority, self.run_dir, **given)
        return [member.node for member in members], notes.lines

    def certificate(self, i, **changes):
        """Give device i another certificate of the true authority."""
        folder, key = self.folders[i], changes.get("identity")
        key = key or SigningKey.load(folder / "identity.pem")
        ca = Authority(SigningKey.load(self.kit.authority / "authority-key.pem"), self.authority)
        request = make_request(
            key, changes.get("name", NAMES[i]),
            node_key_sha256=changes.get("sha256", self.nodes[101 + i])
        )  # fmt: skip
        pem = certify(
            ca, request, changes.get("name", NAMES[i]), Randomness.from_os(),
            at=datetime.now(UTC), valid_days=9
        )  # fmt: skip
        (folder / "certificate.pem").write_bytes(pem)


@pytest.fixture
def deployment(tmp_path):
    return Deployment(tmp_path)


def test_members_enrol_each_from_its_own_node(deployment):
    assert deployment.enrol() == ([101, 102, 103, 104], [])


def test_a_device_that_shows_anothers_certificate_is_left_out(deployment):
    """It holds even the other's identity key: the node key decides."""
    for name in ("certificate.pem", "identity.pem"):
        shutil.copy(deployment.folders[1] / name, deployment.folders[0] / name)
    found, notes = deployment.enrol()
    assert found == [102, 103, 104]
    assert notes == ["node 101 is left out of the run: node.key"]
    # where no node key is known, the first that shows a key has it: so a deployment gives `nodes`
    assert deployment.enrol(nodes=None)[0] == [101, 103, 104]


def test_a_node_that_the_server_did_not_register_is_left_out(deployment):
    del deployment.nodes[103]
    found, notes = deployment.enrol()
    assert found == [101, 102, 104]
    assert notes == ["node 103 is left out of the run: node.unlisted"]


def test_a_certificate_without_a_node_key_is_left_out_of_a_deployment(deployment):
    deployment.certificate(0, sha256=None)
    found, notes = deployment.enrol()
    assert found == [102, 103, 104]
    assert notes == ["node 101 is left out of the run: certificate.node_key"]
    assert deployment.enrol(nodes=None) == ([101, 102, 103, 104], [])  # as in a simulation


def test_a_certificate_for_another_node_key_is_left_out(deployment):
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    deployment.certificate(0, sha256=node_key_sha256(openssh(other)))
    assert deployment.enrol()[1] == ["node 101 is left out of the run: node.key"]


def test_a_revoked_member_is_left_out(deployment):
    fedattn("revoke", deployment.kit.authority, "cem")
    found, notes = deployment.enrol()
    assert found == [101, 102, 104]
    assert notes == ["node 103 is left out of the run: certificate.revoked"]
    assert deployment.enrol(revoked=b"")[0] == [101, 102, 103, 104]


def test_a_second_certificate_for_a_name_would_stop_everybody_so_it_is_left_out(deployment):
    deployment.certificate(1, name="ann")
    found, notes = deployment.enrol()
    assert found == [101, 103, 104]
    assert notes == ["node 102 is left out of the run: certificate.repeated"]


def test_a_device_without_a_certificate_says_so_and_is_left_out(deployment):
    (deployment.folders[2] / "certificate.pem").unlink()
    found, notes = deployment.enrol()
    assert found == [101, 102, 104]
    assert notes == ["node 103 is left out of the run: refusal.certificate"]


def test_too_few_members_stop_the_run_before_it_begins(deployment):
    for name in ("ann", "bob"):
        fedattn("revoke", deployment.kit.authority, name)
    with pytest.raises(ThresholdError, match="2 certified devices enrolled, need 3"):
        deployment.enrol()
    assert list(deployment.run_dir.iterdir()) == []


def test_a_list_that_does_not_hold_stops_the_run(deployment, tmp_path):
    fedattn("init", tmp_path / "other", "--host", "127.0.0.1")
    foreign = (tmp_path / "other" / "authority" / "revoked.crl").read_bytes()
    for bad, check in ((foreign, "issuer"), (b"garbage", "format")):
        with pytest.raises(ProtocolError) as caught:
            deployment.enrol(revoked=bad)
        assert caught.value.check == f"certificate.revocations.{check}"
    assert deployment.seen == []  # nobody was asked


def test_a_devices_own_words_are_shown_to_nobody(deployment):
    canary = "CANARY hunter2"

    class Liar:
        def __getattr__(self, name):
            return getattr(deployment.grid, name)

        def pull_messages(self, names):
            for reply in deployment.grid.pull_messages(names):
                if reply.metadata.src_node_id == 101:
                    reply.content = wire.pack(refusal=canary)
                yield reply

    notes = Notes()
    enrol(
        Liar(), deployment.config, deployment.authority, deployment.run_dir,
        nodes=deployment.nodes, observer=notes,
    )  # fmt: skip
    assert notes.lines == ["node 101 is left out of the run: refusal.unknown"]


def test_introduce_relays_the_list_and_devices_keep_it(deployment):
    members = enrol(
        deployment.grid, deployment.config, deployment.authority, deployment.run_dir,
        nodes=deployment.nodes, revoked=deployment.revoked,
    )  # fmt: skip
    fedattn("revoke", deployment.kit.authority, "dee")
    new = deployment.revoked
    introduce(deployment.grid, deployment.config, members[:3], new)
    for folder in deployment.folders[:3]:
        assert (folder / "revoked.crl").read_bytes() == new
        assert (folder / "members.pem").read_bytes() == b"".join(m.certificate for m in members[:3])
    assert (deployment.folders[3] / "revoked.crl").read_bytes() != new


def test_a_device_takes_no_list_from_a_server_that_is_older_than_its_own(deployment):
    members = enrol(
        deployment.grid, deployment.config, deployment.authority, deployment.run_dir,
        nodes=deployment.nodes,
    )  # fmt: skip
    old = deployment.revoked
    fedattn("revoke", deployment.kit.authority)
    new = deployment.revoked
    introduce(deployment.grid, deployment.config, members, new)
    introduce(deployment.grid, deployment.config, members, old)
    key = SigningKey.load(deployment.kit.authority / "authority-key.pem")
    forged = make_revocations(
        Authority(key, deployment.authority), {1}, 2, at=datetime.now(UTC), valid_days=1
    )
    introduce(deployment.grid, deployment.config, members, forged)  # one number, another list
    for folder in deployment.folders:
        assert (folder / "revoked.crl").read_bytes() == new
    replies = [m for m in deployment.seen if not m.has_error() and wire.refusal(m) is not None]
    assert {wire.refusal(reply) for reply in replies} == {"certificate.revocations.rollback"}
    assert len(replies) == 8
