"""A device's key is made once, read once, and read again whenever its file is another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedattn import own_keys
from fedattn.errors import RunError
from fedattn.own_keys import own_key
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

PURPOSE, ROOT = b"fedattn/v1/test", Path(__file__).parents[1]


def stream(name: str = "a") -> Randomness:
    return Randomness.seeded(1, name)


def unused() -> Randomness:
    raise AssertionError("a key that is there is not made again")


def test_a_key_is_made_when_first_needed_and_then_kept(tmp_path):
    path = tmp_path / "device" / "identity.pem"
    made = own_key(path, stream)
    assert made.public_bytes == SigningKey.generate(stream()).public_bytes
    assert own_key(path, unused).public_bytes == made.public_bytes
    assert own_key(path, unused).sign(PURPOSE, b"x") == made.sign(PURPOSE, b"x")
    assert [found.name for found in path.parent.iterdir()] == ["identity.pem"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_unchanged_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "identity.pem"
    made = own_key(path, stream)
    monkeypatch.setattr(own_keys.SigningKey, "load", unused)
    assert own_key(path, unused) is made


@pytest.mark.parametrize("how", ["replaced", "removed", "rewritten in place"])
def test_a_changed_file_is_read_again(tmp_path, how):
    path, other = tmp_path / "identity.pem", tmp_path / "other.pem"
    first = own_key(path, stream)
    if how == "removed":
        path.unlink()
    else:
        SigningKey.generate(stream("b")).save(other)
        if how == "replaced":
            os.replace(other, path)
        else:
            path.write_bytes(other.read_bytes())
    second = own_key(path, lambda: stream("b"))
    assert second.public_bytes == SigningKey.generate(stream("b")).public_bytes
    assert second.public_bytes != first.public_bytes


def test_a_file_that_is_no_key_any_more_is_an_error_not_the_old_key(tmp_path):
    path = tmp_path / "identity.pem"
    own_key(path, stream)
    path.write_bytes(b"")
    with pytest.raises(RunError, match="not an unencrypted PEM"):
        own_key(path, unused)


def test_half_a_key_of_a_full_disk_is_made_anew(tmp_path):
    (tmp_path / "identity.new").write_bytes(b"-----BEGIN PRI")
    path = tmp_path / "identity.pem"
    assert own_key(path, stream).public_bytes == SigningKey.load(path).public_bytes


KEYS, PROCESSES, APART_S = 60, 3, 0.005
MAKES = """
import sys, time
from pathlib import Path
from fedattn.own_keys import own_key
from fedattn.randomness import Randomness
print(flush=True)
folder, keys, start, apart = Path(sys.argv[1]), int(sys.argv[2]), float(input()), float(sys.argv[3])
for i in range(keys):
    while time.monotonic() < start + i * apart:
        pass
    print(own_key(folder / str(i) / "identity.pem", Randomness.from_os).public_bytes.hex())
"""


def test_processes_that_make_a_key_at_once_all_get_the_one_that_stays(tmp_path):
    command = [sys.executable, "-c", MAKES, str(tmp_path), str(KEYS), str(APART_S)]
    makers = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    for maker in makers:
        maker.stdout.readline()  # it is ready
    start = str(time.monotonic() + 0.05)
    for maker in makers:
        maker.stdin.write(f"{start}\n")
        maker.stdin.flush()
    got = [maker.communicate()[0].split() for maker in makers]
    assert [maker.returncode for maker in makers] == [0] * PROCESSES
    paths = [tmp_path / str(i) / "identity.pem" for i in range(KEYS)]
    kept = [SigningKey.load(path).public_bytes.hex() for path in paths]
    assert got == [kept] * PROCESSES
    assert len(set(kept)) == KEYS
    assert [list(path.parent.iterdir()) for path in paths] == [[path] for path in paths]
