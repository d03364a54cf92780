"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from fedattn.errors import RunError


def read_regular(path: Path) -> bytes:
    """What the file holds; OSError for a pipe or a device, of which a reader might never see the
    end. For folders that anybody may have made."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # (else opening a pipe waits for a writer)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


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


def write_new(path: Path, stored: bytes) -> None:
    """`put_new`; RunError if `path` exists, or why the disk refused."""
    try:
        put_new(path, stored)
    except FileExistsError:
        raise RunError(f"{path}: exists and is not overwritten; choose another name") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); free or repair it") from None


def put_new(path: Path, stored: bytes) -> None:
    """Make the new file `path`, its owner's alone (0600); it has its name when it is on disk.

    Nothing that exists is touched, whatever its name. FileExistsError if `path` does, another
    OSError if the disk refused; then nothing is left.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            file.write(stored)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # unlike a rename it never replaces what has the name
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def require_new(path: Path, option: str) -> None:
    """RunError, naming the command's `option`, unless `path` is free and has a folder."""
    if os.path.lexists(path):
        raise RunError(f"{path}: exists and is not overwritten; choose another {option}")
    if not path.parent.is_dir():
        raise RunError(f"{path.parent}: no such directory; make it or choose another {option}")


def part_of(path: Path) -> Path:
    """Where a file is written before it takes the place of `path`."""
    return path.with_name(f"{path.name}.part")


def put_in_place(part: Path, path: Path) -> None:
    """Rename a file that is on disk, and bring the new name to disk; OSError if refused."""
    part.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to disk, or a new file's could be lost; OSError if refused."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
