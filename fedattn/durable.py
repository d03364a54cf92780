"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path

from fedattn.errors import RunError


def write_durably(path: Path, stored: bytes) -> None:
    """Make `path` hold `stored`, on disk when this returns; what it held before is replaced.

    A reader, and a process that starts after a kill or a power cut, finds the old file or the new
    one. RunError says why the disk refused; then the old file is untouched.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(stored)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(part, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); free or repair it") from None


def part_of(path: Path) -> Path:
    """Where a file is written before it takes the place of `path`."""
    return path.with_name(f"{path.name}.part")


def put_in_place(part: Path, path: Path) -> None:
    """Rename a file that is on disk, and bring the new name to disk; OSError if refused."""
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
