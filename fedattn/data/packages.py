"""Corpora that come as PyPI packages: their files are read, their code is not run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fedattn.errors import DataError


def package_folder(package: str, *, install: str) -> Path:
    """The installed folder of `package`; DataError says to install `install` if it is missing."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        return Path(folder)
    raise DataError(f"package {package} is missing; run: pip install {install}")
