"""Keys made on a device when first needed, and read again only if their file changed.

Every message needs the identity, and reading a key takes longer than signing with it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

REMEMBERED = 4096  # keys in this process: a simulation's devices share it
Stamp: TypeAlias = tuple[int, int, int, int, int]


def own_key(path: Path, randomness: Callable[[], Randomness]) -> SigningKey:
    """The key in `path`, a PEM file; made from `randomness` if there is none.

    Of several processes that make it at once one wins, and all get its key. RunError if the file
    holds no key; OSError if it cannot be made.
    """
    try:
        stamp = stamp_of(path.stat())
    except FileNotFoundError:
        _make(path, randomness())
        stamp = stamp_of(path.stat())
    return _load(path, stamp)


def stamp_of(state: os.stat_result) -> Stamp:
    """What differs, as far as a file system tells, if a file was changed or replaced."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _make(path: Path, randomness: Randomness) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A full disk must not leave half a key, nor two processes write one file.
    whole = path.with_name(f"{path.stem}.{os.getpid()}-{secrets.token_hex(8)}.new")
    try:
        SigningKey.generate(randomness).save(whole)
        with suppress(FileExistsError):  # another process was first: its key stays
            os.link(whole, path)
    finally:
        whole.unlink(missing_ok=True)


@lru_cache(maxsize=REMEMBERED)
def _load(path: Path, _stamp: Stamp) -> SigningKey:
    return SigningKey.load(path)
