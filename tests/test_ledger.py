"""A ledger keeps what was written, in order, under one key, or says where it does not."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedattn.entries import Close, Intent, Skip
from fedattn.errors import LedgerError
from fedattn.ledger import GENESIS, PURPOSE, Ledger, read_ledger
from fedattn.privacy.events import PoissonGaussian, event_to_dict
from fedattn.signing import verify
from tests.run_builder import SERVER, STRANGER, Run, model

CLOSE: dict[str, Any] = {
    "outcome": "completed",
    "released": 0,
    "aborted": 0,
    "skipped": 0,
    "model_sha256": model(0),
}
INTENT: dict[str, Any] = {
    "round": 1,
    "instruction_sha256": model(1),
    "event": {"kind": "no_noise"},
    "threshold": 1,
    "cohort": 1,
    "roster": [SERVER.public_bytes.hex()],
    "model_before": model(0),
}
SKIP: dict[str, Any] = {"round": 2, "reason": "cohort"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Run(tmp_path / "run").write(report=False) / "ledger.jsonl"


def test_what_is_appended_is_what_is_read(path: Path, tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.jsonl", SERVER) as ledger:
        assert ledger.head == GENESIS
        written = [ledger.append("intent", INTENT), ledger.append("close", Close(**CLOSE))]
        assert ledger.head == written[-1].hash
        assert read_ledger(tmp_path / "ledger.jsonl") == ledger.entries == written
    assert isinstance(written[0].body, Intent)


def test_an_intent_keeps_its_rounds_clients_in_their_order(tmp_path: Path) -> None:
    drawn = [key.public_bytes.hex() for key in (STRANGER, SERVER)]
    with Ledger.create(tmp_path / "ledger.jsonl", SERVER) as ledger:
        ledger.append("intent", {**INTENT, "cohort": 2, "roster": drawn})
    (entry,) = read_ledger(tmp_path / "ledger.jsonl")
    assert isinstance(entry.body, Intent)
    assert entry.body.roster == drawn


def test_a_round_that_its_sample_was_too_small_for_is_chained_like_any_other(
    tmp_path: Path,
) -> None:
    """Left out, it could be told after the fact as a round that nobody wanted to see."""
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, SERVER) as ledger:
        first = ledger.append("intent", INTENT)
        skipped = ledger.append("skip", SKIP)
        ledger.append("close", {**CLOSE, "skipped": 1})
    assert skipped.prev == first.hash
    assert [entry.body for entry in read_ledger(path)][1] == Skip(round=2, reason="cohort")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(LedgerError, match="line 2: not a continuation"):
        Ledger.open(path, SERVER)


def test_each_line_chains_to_the_bytes_before_and_signs_its_own(path: Path) -> None:
    previous = "0" * 64
    for seq, line in enumerate(path.read_bytes().splitlines()):
        raw = json.loads(line)
        assert list(raw) == ["seq", "kind", "prev", "at", "body", "signature"]
        assert (raw["seq"], raw["prev"]) == (seq, previous)
        cut = line.index(b',"signature":"')
        signature = bytes.fromhex(raw["signature"])
        assert verify(SERVER.public_bytes, PURPOSE, line[:cut] + b"}", signature)
        previous = hashlib.sha256(line).hexdigest()


def test_a_ledger_is_never_overwritten(path: Path) -> None:
    with pytest.raises(LedgerError, match="never overwritten"):
        Ledger.create(path, SERVER)


def test_a_second_writer_is_refused_until_the_first_is_done(path: Path) -> None:
    with Ledger.open(path, SERVER), pytest.raises(LedgerError, match="another process"):
        Ledger.open(path, SERVER)
    Ledger.open(path, SERVER).close()


def test_a_reopened_ledger_continues_its_chain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, SERVER) as ledger:
        first = ledger.append("intent", INTENT)
    with Ledger.open(path, SERVER) as ledger:
        assert ledger.append("close", CLOSE).prev == first.hash
    with pytest.raises(LedgerError, match="under this key"):
        Ledger.open(path, STRANGER)
    Ledger.open(path, SERVER).close()  # the refusal released the lock


GAUSSIAN = event_to_dict(PoissonGaussian(sampling_rate=0.2, noise_multiplier=1.0, steps=1))


def test_a_wrong_body_writes_nothing(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.jsonl", SERVER) as ledger:
        for kind, body in (
            ("close", {**CLOSE, "extra": 1}),
            ("close", {**CLOSE, "released": "0"}),
            ("close", {**CLOSE, "outcome": "fine"}),
            ("close", {**CLOSE, "model_sha256": model(0).upper()}),
            ("close", {key: CLOSE[key] for key in CLOSE if key != "skipped"}),
            ("close", {**CLOSE, "skipped": -1}),
            ("intent", {**INTENT, "event": {"kind": "magic"}}),
            ("intent", {**INTENT, "event": GAUSSIAN | {"noise_multiplier": 10**400}}),
            ("intent", {key: INTENT[key] for key in INTENT if key != "roster"}),
            ("intent", {**INTENT, "roster": SERVER.public_bytes.hex()}),
            ("intent", {**INTENT, "roster": [SERVER.public_bytes.hex()[:-2]]}),
            ("skip", {**SKIP, "round": 0}),
            ("skip", {**SKIP, "reason": "budget"}),
            ("skip", {"round": 1}),
            ("skip", {**SKIP, "event": {"kind": "no_noise"}}),
            ("gossip", {}),
        ):
            with pytest.raises(LedgerError, match=kind):
                ledger.append(kind, body)
        assert ledger.entries == []
    assert (tmp_path / "ledger.jsonl").read_bytes() == b""
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("close", CLOSE)


def test_a_torn_line_a_bad_line_and_a_newer_format_are_told_apart(path: Path) -> None:
    stored = path.read_bytes()
    for cut in (1, 5, 300):
        path.write_bytes(stored[:-cut])
        with pytest.raises(LedgerError, match=r"last line \(\d+\) is torn"):
            read_ledger(path)
    lines = stored.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{not json}\n", *lines[1:]]))
    with pytest.raises(LedgerError, match="line 2: not valid JSON"):
        read_ledger(path)
    path.write_bytes(b"".join([lines[0], b"\n", *lines[1:]]))
    with pytest.raises(LedgerError, match="line 2"):
        read_ledger(path)
    path.write_bytes(stored.replace(b"fedattn-ledger/5", b"fedattn-ledger/6", 1))
    with pytest.raises(LedgerError, match=r"newer format fedattn-ledger/6.*upgrade"):
        read_ledger(path)
    path.write_bytes(stored.replace(b"fedattn-ledger/5", b"fedattn-ledger/4", 1))
    with pytest.raises(LedgerError, match="older format fedattn-ledger/4, this version reads"):
        read_ledger(path)
    path.write_bytes(stored.replace(b'"round":1', b'"round":"1"', 1))
    with pytest.raises(LedgerError, match="line 2: intent: round"):
        read_ledger(path)
    path.write_bytes(stored.replace(b'"seq":1', b'"seq":1,"seq":2', 1))
    with pytest.raises(LedgerError, match="line 2"):
        read_ledger(path)
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="empty"):
        read_ledger(path)
    with pytest.raises(LedgerError, match="cannot be read"):
        read_ledger(path.parent / "none.jsonl")


@pytest.mark.parametrize("struck", ["write", "fsync"])
def test_a_ledger_that_was_interrupted_in_a_line_takes_no_further_one(
    tmp_path, monkeypatch, struck
):
    """The line may be on disk and not in memory: a next one could break the chain."""

    def interrupt(*_):
        raise KeyboardInterrupt

    ledger = Ledger.create(tmp_path / "ledger.jsonl", SERVER)
    ledger.append("skip", {"round": 1, "reason": "cohort"})
    monkeypatch.setattr(os, struck, interrupt)
    with pytest.raises(KeyboardInterrupt):
        ledger.append("skip", {"round": 2, "reason": "cohort"})
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("skip", {"round": 3, "reason": "cohort"})
