"""Tokenised conversations as flat arrays in one file, mapped into memory.

Memory does not grow with the file: a record is made when it is asked for. The file holds private
token ids: it is its owner's alone (0600), and so is its folder (0700). One that is somebody else's,
or that others may open, or that a symbolic link stands for, is not read, written or deleted: its
digest tells a torn file, not who made it. kept_tokens.py says who writes one, and when it is
deleted.

    32 bytes   SHA-256 of all that follows: a torn file, or another one, is not read
     8 bytes   length of the header, little-endian
     header    JSON: `key` (what was tokenised, and how) and `arrays`: [name, dtype, length] of
               ids      all token ids, turn after turn
               turns    where each turn begins in `ids`, and the end
               speakers who said each turn, numbered within its conversation
               records  where each record begins in `turns`, and the end
               replies  the turns to learn from, numbered within their record
               learnt   where each record begins in `replies`, and the end
               parts    where each part (a client's, or held out) begins in `records`, and the end
     arrays    little-endian, one after another, each at a multiple of 8 bytes
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from fedattn.records import Record

_ARRAYS: Final = {
    "ids": "<u2",
    "turns": "<i8",
    "speakers": "<u2",
    "records": "<i8",
    "replies": "<i4",
    "learnt": "<i8",
    "parts": "<i8",
}


class TokenStore:
    """Parts of tokenised conversations, mapped read-only."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = arrays

    def __repr__(self) -> str:
        return "TokenStore(<omitted>)"

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self._arrays["parts"]) - 1

    def part(self, index: int) -> Sequence[Record]:
        """The records of one part (0..parts-1); IndexError if there is no such one."""
        if not 0 <= index < self.parts:
            raise IndexError("no such part of the token store")
        first, end = self._arrays["parts"][index : index + 2].tolist()
        return _StoredRecords(self, range(first, end))

    def record(self, index: int) -> Record:
        """Record `index` of all, equal to what `tokenize` made."""
        kept = self._arrays
        first, end = kept["records"][index : index + 2].tolist()
        cuts = kept["turns"][first : end + 1].tolist()
        ids = kept["ids"][cuts[0] : cuts[-1]].tolist()
        begin, stop = kept["learnt"][index : index + 2].tolist()
        return Record(
            speakers=tuple(kept["speakers"][first:end].tolist()),
            turns=tuple(tuple(ids[a - cuts[0] : b - cuts[0]]) for a, b in pairwise(cuts)),
            replies=tuple(kept["replies"][begin:stop].tolist()),
        )


class _StoredRecords(Sequence[Record]):
    """Some of a store's records; what is not asked for is not read."""

    def __init__(self, store: TokenStore, places: range) -> None:
        self._store, self._places = store, places

    def __repr__(self) -> str:
        return "Records(<omitted>)"

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return _StoredRecords(self._store, self._places[index])
        return self._store.record(self._places[index])


class FlatRecords:
    """Records on their way into a file, part by part."""

    def __repr__(self) -> str:
        return "FlatRecords(<omitted>)"

    def __init__(self) -> None:
        self._arrays = {name: array(np.dtype(kind).char, []) for name, kind in _ARRAYS.items()}
        for name in ("turns", "records", "learnt", "parts"):
            self._arrays[name].append(0)

    def add(self, records: Iterable[Record]) -> None:
        """Append records to the part that is open."""
        kept = self._arrays
        for record in records:
            for turn in record.turns:
                kept["ids"].extend(turn)
                kept["turns"].append(len(kept["ids"]))
            kept["speakers"].extend(record.speakers)
            kept["records"].append(len(kept["turns"]) - 1)
            kept["replies"].extend(record.replies)
            kept["learnt"].append(len(kept["replies"]))

    def end_part(self) -> None:
        """What follows belongs to the next part."""
        self._arrays["parts"].append(len(self._arrays["records"]) - 1)

    def write(self, path: Path, key: str) -> None:
        """Make `path` a store named `key`, whole and on disk when this returns; OSError if refused.

        Its folder is made, or must be one that `private_folder` opens. It takes its name when it
        is complete, so that who writes the same one at the same time replaces it by its equal.
        """
        body = self._body(key)
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True)
        part = f"{path.name}.{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with private_folder(path.parent) as folder:
            try:
                with os.fdopen(os.open(part, flags, 0o600, dir_fd=folder), "wb") as file:
                    file.write(hashlib.sha256(body).digest())
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=folder)

    def _body(self, key: str) -> bytes:
        listed = [(name, kind, len(self._arrays[name])) for name, kind in _ARRAYS.items()]
        header = json.dumps({"key": key, "arrays": listed}).encode()
        header += b" " * (-len(header) % 8)
        parts = [len(header).to_bytes(8, "little"), header]
        for name, kind in _ARRAYS.items():
            stored = np.asarray(self._arrays[name]).astype(kind).tobytes()
            parts += [stored, b"\0" * (-len(stored) % 8)]
        return b"".join(parts)


def map_tokens(path: Path, key: str) -> TokenStore | None:
    """The store at `path`, or None if there is none, or not a whole and private one of `key`."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # (a pipe must not keep us waiting)
    try:
        with (
            private_folder(path.parent) as folder,
            os.fdopen(os.open(path.name, flags, dir_fd=folder), "rb") as file,
        ):
            _require_private(file.fileno(), stat.S_IFREG, path)
            digest = file.read(32)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                return None
            whole = np.memmap(file, np.uint8, "r")  # what was hashed, whatever has its name now
        start = 40 + int.from_bytes(whole[32:40].tobytes(), "little")
        header = json.loads(whole[40:start].tobytes())
        if header["key"] != key:
            return None
        arrays = {}
        for name, kind, length in header["arrays"]:
            size = np.dtype(kind).itemsize * length
            arrays[name] = np.asarray(whole[start : start + size]).view(kind)
            start += size + -size % 8
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenStore(arrays)


@contextmanager
def private_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder `path`, which is this user's alone; OSError if it is not.

    What is done through the descriptor is done in that folder, whatever takes its name meanwhile.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _require_private(folder, stat.S_IFDIR, path)
        yield folder
    finally:
        os.close(folder)


def _require_private(descriptor: int, kind: int, path: Path) -> None:
    state = os.fstat(descriptor)
    is_ours = state.st_uid == os.geteuid() and not state.st_mode & 0o077
    if stat.S_IFMT(state.st_mode) != kind or not is_ours:
        raise PermissionError(f"{path}: is not this user's alone; delete it, or use another folder")
