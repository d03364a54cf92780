"""An append-only, hash-chained, signed record of what a run did: `ledger.jsonl`.

Each line is one JSON object with the keys seq, kind, prev, at, body, signature, in this order.
`prev` is the SHA-256 of the previous line's bytes without its newline (64 zeros on line 1). The
signature, purpose `fedattn/v1/ledger-entry`, covers the stored bytes of the line up to
`,"signature":"`, closed by `}`. Bytes are signed and hashed as stored: nothing is re-serialised.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedattn.durable import read_regular, sync_folder
from fedattn.entries import LEDGER_FORMAT, AnyBody, parse_body
from fedattn.errors import LedgerError
from fedattn.signing import SIGNATURE_BYTES, SigningKey, verify

PURPOSE = b"fedattn/v1/ledger-entry"
GENESIS = "0" * 64
_KEYS = ["seq", "kind", "prev", "at", "body", "signature"]
_OPENING = b',"signature":"'
_TAIL = len(_OPENING) + 2 * SIGNATURE_BYTES + len(b'"}')
_SIGNED_END = re.compile(rb',"signature":"([0-9a-f]{128})"\}\Z')
_TIME = re.compile(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
_HASH = re.compile(r"\A[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class LedgerEntry:
    """One line, parsed; `line` keeps the stored bytes without the newline."""

    seq: int  # 0, 1, 2, ...
    kind: str
    prev: str  # hash of the line before
    at: str  # ISO 8601, UTC, whole seconds
    body: AnyBody
    signature: bytes
    line: bytes

    @property
    def hash(self) -> str:
        """SHA-256 of the stored line in hex: what the next line and a round's outcome refer to."""
        return hashlib.sha256(self.line).hexdigest()

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return self.line[:-_TAIL] + b"}"

    def is_signed_by(self, public_key: bytes) -> bool:
        """Whether the owner of `public_key` (32 bytes) signed this line."""
        return verify(public_key, PURPOSE, self.signed_bytes, self.signature)


class Ledger:
    """The writer. One process at a time: a second one is refused by a file lock."""

    def __init__(
        self, path: Path, key: SigningKey, handle: int, entries: list[LedgerEntry]
    ) -> None:
        self.path = path
        self.entries = entries
        self.torn = b""  # bytes after the last whole line, until something is appended
        self._key = key
        self._handle: int | None = handle

    @classmethod
    def create(cls, path: Path, key: SigningKey) -> Ledger:
        """Start an empty ledger; LedgerError if `path` exists: history is never overwritten."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise LedgerError(f"{path}: exists; a ledger is never overwritten") from None
        except OSError as error:
            raise LedgerError(f"{path}: cannot be created ({error.strerror})") from None
        _lock(handle, path)
        sync_folder(path.parent)  # the name, too, must survive a power cut
        return cls(path, key, handle, [])

    @classmethod
    def open(cls, path: Path, key: SigningKey, *, is_cut: bool = False) -> Ledger:
        """Continue a ledger; LedgerError unless `key` signed every line of an unbroken chain.

        A last line without its newline is torn: the writer was killed in `append`, which had not
        returned, so nothing that the line announces was done. A torn intent is not spent: nobody
        is contacted before its line is on disk. A torn release leaves its intent open: the round
        is spent, and its model is not the run's. With `is_cut` such a line goes to `torn` and is
        cut off by the next `append`, whose entry is there to say so; without, it is refused.
        """
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise LedgerError(f"{path}: cannot be opened ({error.strerror})") from None
        _lock(handle, path)
        try:
            entries, torn = read_whole_lines(path) if is_cut else (read_ledger(path), b"")
            previous = GENESIS
            for seq, entry in enumerate(entries):
                signed = entry.is_signed_by(key.public_bytes)
                if not signed or (entry.seq, entry.prev) != (seq, previous):
                    raise LedgerError(f"{path} line {seq + 1}: not a continuation under this key")
                previous = entry.hash
        except LedgerError:
            os.close(handle)
            raise
        ledger = cls(path, key, handle, entries)
        ledger.torn = torn
        return ledger

    @property
    def head(self) -> str:
        """Hash of the last line; 64 zeros before the first."""
        return self.entries[-1].hash if self.entries else GENESIS

    def append(self, kind: str, body: Mapping[str, Any] | AnyBody) -> LedgerEntry:
        """Write one signed line and return once it is on disk.

        LedgerError if the body does not fit its kind (nothing is written) or the disk refuses.
        """
        if self._handle is None:
            raise LedgerError(f"{self.path}: closed")
        typed = parse_body(kind, body if isinstance(body, Mapping) else body.model_dump())
        unsigned = _compact(
            {
                "seq": len(self.entries),
                "kind": kind,
                "prev": self.head,
                "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "body": typed.model_dump(),
            }
        )
        signature = self._key.sign(PURPOSE, unsigned)
        line = unsigned[:-1] + _OPENING + signature.hex().encode() + b'"}'
        try:
            if self.torn:
                os.ftruncate(self._handle, os.fstat(self._handle).st_size - len(self.torn))
                self.torn = b""
            if os.write(self._handle, line + b"\n") != len(line) + 1:
                raise OSError("short write")
            os.fsync(self._handle)
            entry = parse_line(line)
            self.entries.append(entry)
        except OSError as error:
            self.close()  # what is on disk is unknown: no line may follow it
            raise LedgerError(f"{self.path}: could not append ({error}); stop") from None
        except BaseException:  # Ctrl-C: the line may be on disk and not in `entries`
            self.close()
            raise
        return entry

    def close(self) -> None:
        """Release the file and its lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Every entry of a ledger, in file order; signatures and chain are the audit's to check.

    LedgerError tells apart: no file, another format, a torn last line, a bad line by number.
    """
    entries, torn = read_whole_lines(path)
    if not entries and not torn:
        raise LedgerError(f"{path}: empty; the run stopped before its first entry")
    if torn:
        raise LedgerError(
            f"{path}: the last line ({len(entries) + 1}) is torn: the writer was cut off before it "
            "did what the line announces. Resume the run (`--resume`), which cuts the line off and "
            f"says so in its next entry; lines 1 to {len(entries)} are whole"
        )
    return entries


def read_whole_lines(path: Path) -> tuple[list[LedgerEntry], bytes]:
    """The entries of a ledger, possibly none, and the bytes after its last newline.

    LedgerError as `read_ledger`, which takes such bytes for an error.
    """
    try:
        stored = read_regular(path)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from None
    *lines, torn = stored.split(b"\n")
    if lines:
        _refuse_other_format(lines[0], path)
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(parse_line(line))
        except LedgerError as error:
            raise LedgerError(f"{path} line {number}: {error}") from None
    return entries, torn


def parse_line(line: bytes) -> LedgerEntry:
    """One stored line without its newline; LedgerError if it has any other shape."""
    found = _SIGNED_END.search(line)
    try:
        raw = json.loads(line, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise LedgerError("not valid JSON") from None
    if not isinstance(raw, dict) or list(raw) != _KEYS or found is None:
        raise LedgerError(f"must be an object with the keys {', '.join(_KEYS)} in this order")
    seq, kind, prev, at = raw["seq"], raw["kind"], raw["prev"], raw["at"]
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
        raise LedgerError("seq must be a whole number from 0 up")
    if not isinstance(prev, str) or not _HASH.match(prev):
        raise LedgerError("prev must be 64 lower-case hex digits")
    if not isinstance(at, str) or not _TIME.match(at):
        raise LedgerError("at must be a UTC time such as 2025-01-31T12:00:00Z")
    body = parse_body(str(kind), raw["body"])
    signature = bytes.fromhex(found[1].decode())
    return LedgerEntry(seq, str(kind), prev, at, body, signature, line)


def _refuse_other_format(first_line: bytes, path: Path) -> None:
    try:
        stated = json.loads(first_line)["body"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    name, _, version = LEDGER_FORMAT.partition("/")
    found = re.fullmatch(rf"{name}/(\d{{1,9}})", str(stated))
    if found and int(found[1]) != int(version):
        age, remedy = "older", "use the fedattn that wrote it"
        if int(found[1]) > int(version):
            age, remedy = "newer", "upgrade fedattn"
        raise LedgerError(
            f"{path}: {age} format {stated}, this version reads {LEDGER_FORMAT}; {remedy}"
        )


def _compact(raw: object) -> bytes:
    return json.dumps(raw, separators=(",", ":"), allow_nan=False).encode()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is said twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise LedgerError(f"{path}: another process is writing to it") from None
