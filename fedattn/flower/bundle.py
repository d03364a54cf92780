"""The app bundle that a run names: two thin entry points and the names of its run config.

It holds no code of fedattn's, no data and no key: servers and devices run the fedattn that is
installed there, and a device runs a bundle only if its policy lists the bundle's sha256.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

BUNDLE_FILES: Final = (
    "clients/__init__.py",
    "clients/app.py",
    "pyproject.toml",
    "server/__init__.py",
    "server/app.py",
)


@cache
def build_bundle() -> bytes:
    """The bundle (a zip in Flower's format): equal bytes wherever this fedattn is installed."""
    from flwr.cli.build import build_fab_from_files

    root = files("fedattn") / "assets" / "app"
    bundle, _ = build_fab_from_files({name: (root / name).read_bytes() for name in BUNDLE_FILES})
    return bundle


def bundle_sha256() -> str:
    """What a policy's `app_hashes` lists: the sha256 of the bundle's bytes, in hex."""
    return hashlib.sha256(build_bundle()).hexdigest()
