"""A simulation's conversations, tokenised once and read by each of its processes from one file.

A simulation plays all devices, and without a store each of its worker processes would load and
tokenise the whole corpus. The store lies in the run directory; no other run uses it, nothing sends
it anywhere, and it is deleted when the simulation ends. (One that is killed leaves it behind;
`resume` reads it, and deletes it.) A device with data of its own makes none, and reads none,
whatever its environment says: it tokenises them in memory, once a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from fedattn import __version__
from fedattn.config import Config, DataConfig
from fedattn.data import Dialogue, data_stamp, load_partition
from fedattn.data.chitchat import PACKAGE, chitchat_version
from fedattn.data.packages import package_folder
from fedattn.errors import FedattnError
from fedattn.protocol import HELD_OUT_BYTES
from fedattn.records import Record, tokenize, training_records
from fedattn.start import start_facts
from fedattn.token_store import FlatRecords, TokenStore, map_tokens, private_folder
from fedattn.tokens import Tokenizer

VARIABLE: Final = "FEDATTN_TOKENS"  # the folder of this simulation's store
FORMAT: Final = "fedattn-tokens/2"  # changes with whatever changes a config's records
SMALL: Final = 1 << 20  # a source of fewer bytes is tokenised faster than a process starts
_CHUNK: Final = 512  # conversations tokenised at once
_OURS: Final = re.compile(r"[0-9a-f]{64}\.tokens(\.[0-9a-f]{16}\.part)?")  # files of `write_tokens`


class KeptTokens(NamedTuple):
    """The records of one data config: parts of a store, in the order of `load_partition`."""

    store: TokenStore

    def __repr__(self) -> str:
        return "KeptTokens(<omitted>)"

    def train(self, client: int) -> Sequence[Record]:
        """The conversations of one client (0..clients-1); IndexError if there is no such one."""
        if client >= self.store.parts - 2:
            raise IndexError("no such client in the token store")
        return self.store.part(client)

    @property
    def validation(self) -> Sequence[Record]:
        """The conversations held out for validation."""
        return self.store.part(self.store.parts - 2)

    @property
    def test(self) -> Sequence[Record]:
        """The conversations held out for test."""
        return self.store.part(self.store.parts - 1)


@contextmanager
def kept_tokens(config: Config, folder: Path) -> Iterator[None]:
    """While this lasts, this process and those it starts read `config`'s records from `folder`.

    The store is written first, unless a whole one of ours lies there, by a process of its own: what
    a corpus costs as Python objects goes with it. In the end `folder` is deleted. A source of less
    than 1 MiB gets none, nor one of one client, nor one that fails to load, nor a `folder` that is
    not this user's alone: without a store every process loads the source itself, and says what is
    wrong with it. Nor is a store read that an outer environment names.
    """
    before = os.environ.pop(VARIABLE, None)
    try:
        is_shared = config.data.clients > 1 and _size(config.data) >= SMALL
        if is_shared and _write_apart(config, folder):
            os.environ[VARIABLE] = str(_absolute(folder))
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
        _delete(folder)


def open_tokens(config: DataConfig, vocab_size: int) -> KeptTokens | None:
    """The store of `config` that this simulation keeps; None if it keeps no whole one.

    None for a source of one client: a device's own data are one (`OwnData.config`), and such a
    device may have inherited the variable from whatever started it.
    """
    if VARIABLE not in os.environ or config.clients == 1:
        return None
    return _stored(config, vocab_size, Path(os.environ[VARIABLE]))


def _stored(config: DataConfig, vocab_size: int, folder: Path) -> KeptTokens | None:
    key = _key(config.model_dump_json(), _stamp(config), vocab_size)
    path = folder / f"{key}.tokens"
    try:
        state = path.lstat()
    except OSError:
        return None
    # (the last tells a change of owner or mode, too)
    return _opened(path, key, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def write_tokens(config: DataConfig, vocab_size: int, folder: Path) -> Path:
    """Tokenise all of `config`'s conversations into `folder`; a whole store there stays.

    Raises what loading the source raises. Held-out conversations must all be tokenised, as they
    are; the others are cleaned as `config.clean` says, and those that cannot be cleaned or
    tokenised are left out, as everywhere (`training_records`).
    """
    key = _key(config.model_dump_json(), _stamp(config), vocab_size)
    path = folder / f"{key}.tokens"
    if map_tokens(path, key) is not None:
        return path
    made = load_partition(config)
    tokenizer = Tokenizer(vocab_size)
    flat = FlatRecords()
    for owned in made.train:
        for some in _chunks(owned):
            flat.add(training_records(some, tokenizer, config))
        flat.end_part()
    for held_out in (made.validation, made.test):
        for some in _chunks(held_out):
            flat.add(tokenize(some, tokenizer, HELD_OUT_BYTES))
        flat.end_part()
    flat.write(path, key)
    return path


def _chunks(dialogues: Sequence[Dialogue]) -> Iterator[list[Dialogue]]:
    left = iter(dialogues)
    while some := list(islice(left, _CHUNK)):
        yield some


@lru_cache(maxsize=4)
def _opened(path: Path, key: str, *_state: int) -> KeptTokens | None:
    store = map_tokens(path, key)
    return None if store is None else KeptTokens(store)


def _source(config: DataConfig) -> Path:
    return _chitchat()[1] if config.path is None else Path(config.path)


@cache
def _chitchat() -> tuple[str, Path]:
    """The installed package's version, and its file."""
    folder = package_folder("chitchat_dataset", install=PACKAGE)
    return chitchat_version(), folder / "dataset.json"


def _size(config: DataConfig) -> int:
    try:
        return _source(config).stat().st_size
    except (OSError, FedattnError):
        return 0  # loading it will say what is wrong


def _stamp(config: DataConfig) -> tuple[str | int, ...]:
    """What tells this source from what it was: as `data_stamp`, for the package's file too."""
    if config.path is not None:
        return data_stamp(config)
    installed, path = _chitchat()
    state = path.stat()
    return installed, state.st_ino, state.st_size, state.st_mtime_ns


def _key(config_json: str, stamp: tuple[str | int, ...], vocab_size: int) -> str:
    named = json.dumps([FORMAT, __version__, config_json, stamp, vocab_size])
    return hashlib.sha256(named.encode()).hexdigest()


def _write_apart(config: Config, folder: Path) -> bool:
    """`write_tokens` in a process of its own, which says nothing; whether there is a store now."""
    shape = config.model.architecture
    vocab_size = (start_facts(config.model).architecture if shape is None else shape).vocab_size
    asked = {"data": config.data.model_dump(), "vocab_size": vocab_size, "folder": str(folder)}
    written = subprocess.run(
        [sys.executable, "-m", "fedattn.kept_tokens"],
        input=json.dumps(asked).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # a panic of compiled code may quote what it was given
        check=False,
    )
    if written.returncode != 0:
        return False
    return _stored(config.data, vocab_size, _absolute(folder)) is not None


def _absolute(folder: Path) -> Path:
    """`folder` for every process; a link in its own place stays one, and is refused."""
    return folder.parent.resolve() / folder.name


def _delete(folder: Path) -> None:
    """Delete a store's folder: the files that a store makes, and the folder if nothing is left.

    A folder that is not this user's alone, or that a link stands for, stays as it is.
    """
    with suppress(OSError):
        with private_folder(folder) as held:
            for name in os.listdir(held):
                if _OURS.fullmatch(name):
                    os.unlink(name, dir_fd=held)
        folder.rmdir()


def main() -> None:
    """Write the store that standard input asks for, as JSON."""
    asked = json.loads(sys.stdin.read())
    config = DataConfig.model_validate(asked["data"])
    write_tokens(config, asked["vocab_size"], Path(asked["folder"]))


if __name__ == "__main__":
    main()
