"""Keys are made once, where they stay, for their owner's eyes; nothing is overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from fedattn.policy import load_policy
from fedattn.signing import SigningKey
from tests.kit.kit import Kit, facts, fedattn, refused

SECRETS = {
    "authority": ["authority-key.pem"],
    "server": ["server.pem", "tls-key.pem"],
    "device": ["identity.pem", "ledger-key.pem", "node-key", "superexec-secret"],
}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def secret_files(kit, device):
    folders = {"authority": kit.authority, "server": kit.server, "device": device}
    return [folders[kind] / name for kind, names in SECRETS.items() for name in names]


def test_a_folder_holds_what_its_party_needs_and_no_more(kit):
    device = kit.member("ann")
    common = {"authority.pem", "revoked.crl", "README.md"}
    assert {path.name for path in files(device)} == {
        *common, *SECRETS["device"], "node-key.pub", "request.json", "federation.yaml",
        "policy.yaml", "start.sh", "certificate.pem",
    }  # fmt: skip
    assert {str(path.relative_to(kit.server)) for path in files(kit.server)} == {
        *common, *SECRETS["server"], "tls.pem", "server.yaml", "request.json", "start.sh",
        "admitted/ann.json",
    }  # fmt: skip
    assert {path.name for path in files(kit.invitation)} == {*common, "federation.yaml"}
    assert {str(path.relative_to(kit.authority)) for path in files(kit.authority)} == {
        *common, *SECRETS["authority"], "federation.yaml", "issued/ann.json",
        "servers/127.0.0.1.json",
    }  # fmt: skip


def test_secrets_are_their_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        kit = Kit(tmp_path)
        fedattn("init", tmp_path / "fed", "--host", "127.0.0.1")
        device = kit.member("ann")
    finally:
        os.umask(before)
    secrets = secret_files(kit, device)
    for path in secrets:
        assert mode(path) == 0o600, path
    for folder in (kit.authority, kit.server, device):
        assert mode(folder) == 0o700
    for path in files(tmp_path):
        if path not in secrets and path != kit.data:
            assert mode(path) in (0o644, 0o755, 0o666), path


def private_bytes(path):
    """What would give the key in `path` away: its scalar or seed, and its file."""
    stored = path.read_bytes()
    if path.name == "superexec-secret":
        return [stored]
    load = load_ssh_private_key if path.name == "node-key" else load_pem_private_key
    key = load(stored, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raw = key.private_numbers().private_value.to_bytes(32, "big")
    else:
        raw = key.private_bytes_raw()
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    body = b"".join(stored.splitlines()[1:-1])
    return [raw, raw.hex().encode(), stored, body, b"".join(pkcs8.splitlines()[1:-1])]


def test_no_private_key_is_in_a_file_but_its_own(kit, tmp_path):
    devices = [kit.member("ann"), kit.member("bob")]
    fedattn("revoke", kit.authority, "bob")
    secrets = {path for device in devices for path in secret_files(kit, device)}
    assert len(secrets) == 3 + 2 * 4
    everything = files(tmp_path)
    assert len(everything) > 40
    for secret in secrets:
        for marker in private_bytes(secret):
            for path in everything:
                if path != secret:
                    assert marker not in path.read_bytes().replace(b"\n", b""), (secret, path)


def test_no_two_keys_are_equal(kit):
    devices = [kit.member("ann"), kit.member("bob")]
    markers = [
        private_bytes(path)[0] for path in {p for d in devices for p in secret_files(kit, d)}
    ]
    assert len(set(markers)) == len(markers)


@pytest.mark.parametrize("kind", ["authority", "server", "device", "invitation"])
def test_a_readme_of_about_ten_lines_says_what_is_secret_and_how_to_go_on(kit, kind):
    device = kit.member("ann")
    folder = {
        "authority": kit.authority, "server": kit.server, "device": device,
        "invitation": kit.invitation,
    }[kind]  # fmt: skip
    text = (folder / "README.md").read_text()
    assert 5 <= len(text.splitlines()) <= 12
    assert "{{" not in text
    assert "test federation" in text
    for name in SECRETS.get(kind, []):
        assert name in text
    if kind in SECRETS:
        assert "ack up" in text
        assert "lost" in text


def test_start_sh_starts_the_folder_that_it_lies_in(kit, tmp_path):
    device = kit.join("ann")
    fake = tmp_path / "bin" / "fedattn"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    for folder in (device, kit.server):
        done = subprocess.run(
            [folder / "start.sh"], env={"PATH": f"{fake.parent}:/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == f"federation start {folder}\n"


def test_the_policy_names_the_data_and_the_installed_bundle(kit):
    from fedattn.flower.bundle import bundle_sha256

    policy = load_policy(kit.join("ann") / "policy.yaml")
    assert policy.data.path == str(kit.data.resolve())
    assert policy.app_hashes == [bundle_sha256()]


# ---- nothing is overwritten


def stored(folder):
    return {path.relative_to(folder): path.read_bytes() for path in files(folder)}


def test_nothing_is_overwritten_without_force(kit, tmp_path):
    device = kit.member("ann")
    before = stored(tmp_path)
    message = "exists; nothing is overwritten. --force renames what is in the way to NAME.old-TIME"
    refused(message, "init", tmp_path / "fed", "--host", "127.0.0.1")
    arguments = ["--invitation", kit.invitation, "--name", "ann", "--data", kit.data]
    refused(message, "join", device, *arguments)
    again = ["--host", "127.0.0.1", "--invitation", kit.invitation]
    refused(message, "server", kit.server, *again)
    one = ["--authority-only", "--held-by", "a notary"]
    refused(message, "init", tmp_path / "fed", *one)
    assert stored(tmp_path) == before


def test_one_file_in_the_way_is_enough_and_nothing_is_made_beside_it(kit, tmp_path):
    folder = tmp_path / "device-ann"
    folder.mkdir()
    (folder / "policy.yaml").write_text("mine")
    with pytest.raises(Exception, match=r"policy\.yaml: exists; nothing is overwritten"):
        kit.join("ann")
    assert stored(folder) == {(folder / "policy.yaml").relative_to(folder): b"mine"}


def test_force_keeps_every_old_file_under_another_name(kit):
    device = kit.member("ann")
    (device / "policy.yaml").write_text("edited by hand")
    before = stored(device)
    for _ in range(2):  # twice in a second: names do not collide
        kit.join("ann", "--force")
    kept = set(stored(device).values())
    for name, content in before.items():
        assert content in kept, f"{name} was lost"
    new = SigningKey.load(device / "identity.pem").public_bytes
    (old, *_) = sorted(device.glob("identity.pem.old-*"))
    assert SigningKey.load(old).public_bytes != new
    assert mode(old) == 0o600
    assert not (device / "certificate.pem").exists()


def test_a_new_federation_by_force_keeps_the_old_keys(kit, tmp_path):
    old = (kit.authority / "authority-key.pem").read_bytes()
    old_server = (kit.server / "server.pem").read_bytes()
    kit.member("ann")
    fedattn("init", tmp_path / "fed", "--host", "127.0.0.1", "--force")
    (kept,) = kit.authority.glob("authority-key.pem.old-*")
    assert kept.read_bytes() == old
    (kept,) = kit.server.glob("server.pem.old-*")
    assert kept.read_bytes() == old_server
    assert list((kit.server / "admitted").iterdir()) == []
    assert list(kit.authority.glob("issued.old-*/ann.json"))


# ---- who can read a key


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(kit, bits):
    device = kit.join("ann")
    request, approval = device / "request.json", kit.approve(device)
    for secret, command in (
        (kit.authority / "authority-key.pem", ["approve", kit.authority, request, "--yes"]),
        (kit.authority / "authority-key.pem", ["revoke", kit.authority, "ann"]),
        (kit.server / "server.pem", ["admit", kit.server, approval]),
        (kit.server / "tls-key.pem", ["start", kit.server]),
        (device / "identity.pem", ["join", device, "--approval", approval]),
        (device / "node-key", ["start", device]),
        (device / "ledger-key.pem", ["show", device]),
        (device / "superexec-secret", ["show", device]),
    ):
        secret.chmod(bits)
        said = refused(f"{secret}: others can read or change it (mode {bits:04o})", *command)
        assert f"chmod 600 {secret}" in said
        secret.chmod(0o600)


def test_a_key_that_is_missing_or_of_another_kind_is_refused(kit):
    device = kit.join("ann")
    approval = kit.approve(device)
    (device / "node-key").rename(device / "elsewhere")
    refused("node-key: missing; restore it from the backup", "join", device, "--approval", approval)
    (device / "node-key").write_bytes(b"garbage")
    (device / "node-key").chmod(0o600)
    refused("not an unencrypted elliptic-curve key", "join", device, "--approval", approval)


def test_an_authority_whose_key_is_another_signs_nothing(kit):
    device = kit.join("ann")
    (kit.authority / "authority-key.pem").unlink()
    other = SigningKey(bytes(32))
    other.save(kit.authority / "authority-key.pem")
    request = device / "request.json"
    message = "certificate.authority: is not of the key in authority-key.pem"
    refused(message, "approve", kit.authority, request, "--yes")


def test_a_folder_of_another_party_is_named(kit, tmp_path):
    device = kit.member("ann")
    approval = kit.issued("ann")
    refused("is the folder of the device, not of the server", "admit", device, approval)
    refused("is the folder of the server, not of the authority", "revoke", kit.server, "ann")
    refused("no folder of a federation; `fedattn federation init`", "show", tmp_path)
    refused("a server's or a device's starts", "start", kit.invitation)
    refused("is a device's folder; runs are the server's", "run", device, "config.yaml")


def test_what_is_not_approved_yet_does_not_start(kit):
    device = kit.join("ann")
    refused("certificate.pem: missing; send request.json to the authority", "start", device)
    assert "none yet" in facts(device)["certificate"]


def test_the_command_itself_ends_with_exit_code_2_and_no_traceback(kit):
    done = subprocess.run(
        [sys.executable, "-m", "fedattn.cli", "federation", "revoke", kit.authority, "nobody"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.endswith("no certificate of `nobody`; there are: none\n")
    assert "Traceback" not in done.stderr
