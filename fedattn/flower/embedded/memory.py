"""Anonymous shared memory: a file descriptor without a name.

Nothing is left behind however a process ends: the kernel frees the memory with its last holder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable


def allocate(size: int = 0) -> int:
    """A new descriptor of `size` zero bytes, closed in programs that this process starts."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fedattn", os.MFD_CLOEXEC)
    else:  # an unlinked file, where the kernel has no nameless memory
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def write(descriptor: int, pieces: Iterable[bytes]) -> None:
    """Append `pieces`, one after another."""
    for piece in pieces:
        left = memoryview(piece)
        while left:
            left = left[os.write(descriptor, left) :]


def read(descriptor: int, length: int, offset: int) -> bytes:
    """The `length` bytes at `offset`; EOFError if there are fewer."""
    found = os.pread(descriptor, length, offset)  # of a large object, one copy
    if len(found) == length:
        return found
    parts = [found]
    while parts[-1] and (have := sum(map(len, parts))) < length:
        parts.append(os.pread(descriptor, length - have, offset + have))
    whole = b"".join(parts)
    if len(whole) != length:
        raise EOFError(f"shared memory holds {len(whole)} of {length} bytes")
    return whole


class Segment:
    """A descriptor of shared memory that is closed with this object."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        """Give it up; the other holders keep theirs."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()
