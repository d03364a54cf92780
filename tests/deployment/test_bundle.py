"""What travels to a device: two entry points, byte for byte the repository's, and nothing else."""

from __future__ import annotations

import hashlib
import io
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedattn.flower.bundle import BUNDLE_FILES, build_bundle, bundle_sha256

ROOT = Path(__file__).parent.parent.parent
LISTED = [
    ".info/CONTENT",
    "clients/__init__.py",
    "clients/app.py",
    "pyproject.toml",
    "server/__init__.py",
    "server/app.py",
]


def names(bundle: bytes) -> list[str]:
    return sorted(zipfile.ZipFile(io.BytesIO(bundle)).namelist())


def test_the_bundle_holds_its_entry_points_and_nothing_else():
    assert names(build_bundle()) == LISTED


def test_the_bundle_holds_no_code_of_fedattn():
    archive = zipfile.ZipFile(io.BytesIO(build_bundle()))
    assert not [name for name in archive.namelist() if "fedattn" in name]
    assert sum(item.file_size for item in archive.infolist()) < 5000


def test_the_bundle_is_built_twice_to_the_same_bytes():
    first = build_bundle()
    build_bundle.cache_clear()
    assert build_bundle() == first
    assert bundle_sha256() == hashlib.sha256(first).hexdigest()


def test_its_pyproject_is_what_flower_writes_so_that_no_other_writer_changes_the_hash():
    """Flower dumps the table anew: a newer dumper could move a blank line, and the sha256."""
    written = zipfile.ZipFile(io.BytesIO(build_bundle())).read("pyproject.toml")
    assert written == (ROOT / "fedattn/assets/app/pyproject.toml").read_bytes()


@pytest.mark.parametrize("name", [name for name in BUNDLE_FILES if name.endswith(".py")])
def test_its_entry_points_are_those_of_the_repository(name):
    assert (ROOT / "fedattn/assets/app" / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_repository_and_the_bundle_agree_on_components_and_run_config():
    tables = [
        tomllib.loads((ROOT / path).read_text())["tool"]["flwr"]["app"]
        for path in ("pyproject.toml", "fedattn/assets/app/pyproject.toml")
    ]
    for key in ("publisher", "components", "config"):
        assert tables[0][key] == tables[1][key]
    assert set(tables[1]["config"]) == {
        "config-json",
        "run-dir",
        "server-key",
        "authority",
        "nodes",
        "revoked",
        "resume",
        "authority-held-by",
        "created-by",
    }


def test_a_shard_and_a_ledger_lying_in_the_tree_stay_out_of_the_repositorys_bundle(tmp_path):
    """`flwr build` packs JSONL, JSON, YAML, TOML and Markdown of a whole tree by default."""
    for path in ("pyproject.toml", "README.md", "server", "clients", "fedattn", "configs"):
        source = ROOT / path
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / path)
    for stray in (
        "shard.jsonl",
        "shard.jsonl.ledger.jsonl",
        "server/shard.jsonl",
        "clients/conversations.json",
        "clients/policy.yaml",
        "server/server.pem",
        "runs/a/ledger.jsonl",
        "federation/device-1/identity.pem",
        "federation/device-1/note.py",
    ):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_text("private")
    assert names(build_fab_from_disk(tmp_path)) == LISTED
