"""A device's ledger: what its data has answered and spent, over all runs and federations.

Append-only JSON lines with the keys seq, kind, prev, key, body, signature, in this order. `prev`
is the SHA-256 of the previous line's bytes (64 zeros on line 1). The signature covers the stored
bytes up to `,"signature":"`, closed by `}`, and is of the device's ledger key, whose public half is
`key`: two federations that train on one data file share its ledger, and each signs with its own
key. A line of another key counts like an own one, for lines only ever make a device more careful.

    open      the format, and for which data file (a hash of its name)
    accepted  an instruction was answered, so that it is never answered again
    spent     an event is spent; written before private data is read
    cut       a torn last line was cut off

The file is locked while one line is decided and written. A line is on disk (fsync of file and
folder) before its reply leaves; so a torn last line is one whose reply never left, and is cut off.
Any other damage is refused: a ledger that cannot be read must not count as an empty one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from fedattn.durable import sync_folder
from fedattn.errors import FedattnError, RefusalError
from fedattn.own_keys import Stamp, stamp_of
from fedattn.privacy.events import Event, event_from_dict, event_to_dict
from fedattn.signing import SIGNATURE_BYTES, SigningKey, verify

FORMAT: Final = "fedattn-device-ledger/1"
PURPOSE: Final = b"fedattn/v1/device-ledger-line"
GENESIS: Final = "0" * 64
WAIT_S: Final = 5.0  # for another process of this device, before this one gives up
REMEMBERED: Final = 4096  # ledgers that this process read or wrote last
Kind: TypeAlias = Literal["open", "accepted", "spent", "cut"]
_KEYS = ["seq", "kind", "prev", "key", "body", "signature"]
_OPENING = b',"signature":"'
_TAIL = len(_OPENING) + 2 * SIGNATURE_BYTES + len(b'"}')
_RULE = "spend_ledger"


@dataclass(frozen=True)
class Answer:
    """What a line says of an instruction."""

    instruction: str  # its hash
    run: str  # which run of which server it was of
    round: int
    config: str  # hash of the config that it carried
    mode: str  # unit/noise
    event: Event


@dataclass(frozen=True)
class LedgerState:
    """How long a ledger is and the hash of its last line; (0, 64 zeros) before the first."""

    count: int
    head: str


@dataclass(frozen=True)
class Lines:
    """A whole ledger as read: every line's hash, and what was answered."""

    hashes: tuple[str, ...] = ()
    accepted: tuple[Answer, ...] = ()
    spent: tuple[Answer, ...] = ()

    @property
    def state(self) -> LedgerState:
        """Count and head."""
        return LedgerState(len(self.hashes), self.hashes[-1] if self.hashes else GENESIS)

    def contains(self, state: LedgerState) -> bool:
        """Whether the ledger once was in `state`, so that it is no older copy of itself."""
        if state.count == 0:
            return state.head == GENESIS
        return 0 < state.count <= len(self.hashes) and self.hashes[state.count - 1] == state.head

    @cached_property
    def answered(self) -> frozenset[str]:
        """Hashes of all instructions in it."""
        return frozenset(answer.instruction for answer in (*self.accepted, *self.spent))

    def extended(self, line: bytes, kind: Kind, body: Mapping[str, Any]) -> Lines:
        """The ledger with one more line; copies the others, so not the way to read many."""
        accepted, spent = self.accepted, self.spent
        if kind == "accepted":
            accepted = (*accepted, _answer(body))
        elif kind == "spent":
            spent = (*spent, _answer(body))
        return Lines((*self.hashes, _hash(line)), accepted, spent)


class DeviceLedger:
    """The ledger at `path`; `key` makes or reads the key that signs new lines.

    `data`: name of the data file that it belongs to, None where it lies in a device's own folder.
    Every method raises RefusalError("spend_ledger") if the file cannot be read, written or locked.
    """

    def __init__(self, path: Path, key: Callable[[], SigningKey], data: str | None = None) -> None:
        self.path, self._key = path, key
        self._data = None if data is None else _name_hash(data)

    def read(self) -> Lines:
        """The ledger as it is; a missing one is empty."""
        if not self.path.exists():
            return Lines()
        with self.locked() as session:
            return session.lines

    @contextmanager
    def locked(self) -> Iterator[Session]:
        """The ledger while no other process may write to it."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            raise RefusalError(_RULE, "cannot be written on this device") from None
        try:
            _lock(handle)
            session = Session(self.path, handle, self._key, self._data)
            session.load()
            yield session
        finally:
            os.close(handle)  # and with it the lock


class Session:
    """A locked ledger: what it holds, and `append`."""

    def __init__(
        self, path: Path, handle: int, key: Callable[[], SigningKey], data: str | None
    ) -> None:
        self._path, self._handle, self._key, self._data = path, handle, key, data
        self.lines = Lines()

    def load(self) -> None:
        """Read and check every line, unless this process knows the file as it is."""
        try:
            state = stamp_of(os.fstat(self._handle))
            known = _known.get(self._path)
            if known is not None and known[:2] == (state, self._data):
                self.lines = known[2]
                self._keep(known)
                return
            stored = _read_all(self._handle, state[2])
            *whole, torn = stored.split(b"\n")
            self.lines = _parse(whole, self._data)
            if torn:
                os.ftruncate(self._handle, len(stored) - len(torn))
                self._write("cut", {"bytes": len(torn)})
        except RefusalError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, FedattnError):
            raise RefusalError(_RULE, "cannot be read on this device") from None
        self._remember()

    def append(self, kind: Literal["accepted", "spent"], answer: Answer) -> None:
        """Write a line and return once it is on disk."""
        body = {
            "instruction": answer.instruction,
            "run": answer.run,
            "round": answer.round,
            "config": answer.config,
            "mode": answer.mode,
            "event": event_to_dict(answer.event),
        }
        self._write(kind, body)
        self._remember()

    def _write(self, kind: Kind, body: Mapping[str, Any]) -> None:
        try:
            key = self._key()
        except (OSError, FedattnError):
            raise RefusalError(_RULE, "its key cannot be read or made on this device") from None
        lines, written = self.lines, b""
        if not lines.hashes:
            lines, written = _extended(lines, "open", {"format": FORMAT, "data": self._data}, key)
        lines, line = _extended(lines, kind, body, key)
        before = os.fstat(self._handle).st_size
        _known.pop(self._path, None)
        try:
            if os.write(self._handle, written + line) != len(written + line):
                raise OSError("short write")
            os.fsync(self._handle)
            if written:
                sync_folder(self._path.parent)
        except OSError:
            # What did reach the disk was not answered; taking it back is best effort, for a torn
            # line is cut off when the ledger is next read and a whole one is spent.
            with suppress(OSError):
                os.ftruncate(self._handle, before)
            raise RefusalError(_RULE, "cannot be written on this device") from None
        self.lines = lines

    def _remember(self) -> None:
        self._keep((stamp_of(os.fstat(self._handle)), self._data, self.lines))

    def _keep(self, known: tuple[Stamp, str | None, Lines]) -> None:
        _known.pop(self._path, None)
        _known[self._path] = known
        while len(_known) > REMEMBERED:
            _known.popitem(last=False)


# What this process read or wrote last, the longest unused first: a simulation asks hundreds of
# ledgers at every round, and not all of a hundred thousand.
_known: OrderedDict[Path, tuple[Stamp, str | None, Lines]] = OrderedDict()


def _lock(handle: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RefusalError(
                    _RULE, "another process of this device is writing to it; run one at a time"
                ) from None
            time.sleep(0.02)
        except OSError:
            raise RefusalError(_RULE, "cannot be locked on this device") from None


def _read_all(handle: int, size: int) -> bytes:
    pieces, place = [], 0
    while place < size:
        piece = os.pread(handle, size - place, place)
        if not piece:
            raise OSError("short read")
        pieces.append(piece)
        place += len(piece)
    return b"".join(pieces)


def _extended(
    lines: Lines, kind: Kind, body: Mapping[str, Any], key: SigningKey
) -> tuple[Lines, bytes]:
    """The ledger with one more line, and the bytes to write."""
    count, head = lines.state.count, lines.state.head
    unsigned = json.dumps(
        {"seq": count, "kind": kind, "prev": head, "key": key.public_bytes.hex(), "body": body},
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
    signature = key.sign(PURPOSE, unsigned)
    line = unsigned[:-1] + _OPENING + signature.hex().encode() + b'"}'
    return lines.extended(line, kind, body), line + b"\n"


def _parse(whole: list[bytes], data: str | None) -> Lines:
    """The lines, checked one by one: form, order, chain, signature, kind; linear in their number.

    The file is locked meanwhile, and grows over years.
    """
    hashes: list[str] = []
    answers: dict[str, list[Answer]] = {"accepted": [], "spent": []}
    for seq, line in enumerate(whole):
        raw = json.loads(line)
        if list(raw) != _KEYS or not line[-_TAIL:].startswith(_OPENING):
            raise ValueError("not a line of a device ledger")
        head = hashes[-1] if hashes else GENESIS
        if type(raw["seq"]) is not int or (raw["seq"], raw["prev"]) != (seq, head):
            raise ValueError("not the next line")
        key, signature = bytes.fromhex(raw["key"]), bytes.fromhex(raw["signature"])
        if not verify(key, PURPOSE, line[:-_TAIL] + b"}", signature):
            raise ValueError("not signed by the key that it names")
        kind, body = raw["kind"], raw["body"]
        if (kind == "open") != (seq == 0):
            raise ValueError("`open` is the first line and no other")
        if kind == "open":
            _check_open(body, data)
        elif kind in answers:
            answers[kind].append(_answer(body))
        elif kind != "cut":
            raise ValueError("unknown kind")
        hashes.append(_hash(line))
    return Lines(tuple(hashes), tuple(answers["accepted"]), tuple(answers["spent"]))


def _check_open(body: Mapping[str, Any], data: str | None) -> None:
    if body["format"] != FORMAT:
        raise ValueError("another format")
    if body["data"] != data:
        raise RefusalError(
            _RULE,
            "was begun for a data file of another name; give the data file its old name back, or "
            "put its own ledger beside it",
        )


def _answer(body: Mapping[str, Any]) -> Answer:
    instruction, run, config = body["instruction"], body["run"], body["config"]
    mode, round_ = body["mode"], body["round"]
    if not all(isinstance(name, str) for name in (instruction, run, config, mode)):
        raise ValueError("not a name")
    if type(round_) is not int:
        raise ValueError("not a round")
    return Answer(instruction, run, round_, config, mode, event_from_dict(body["event"]))


def _name_hash(name: str) -> str:
    return hashlib.sha256(b"fedattn/v1/device-data\0" + name.encode()).hexdigest()


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
