"""Killed anywhere, a run goes on: no spend is lost or doubled, no update is applied twice."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedattn.audit import audit
from fedattn.config import Config
from fedattn.entries import Abort, Intent, Open, Release, Resume
from fedattn.errors import LedgerError, RunError
from fedattn.ledger import LedgerEntry, read_ledger, read_whole_lines
from fedattn.privacy.events import round_event
from fedattn.privacy.rows import spends
from fedattn.signing import SigningKey, fingerprint
from fedattn.simulate import Simulation, simulate
from tests.federation import conversations, tiny, write
from tests.killed import Place, run_until_killed

ROUNDS = 3
STAGES = ("advertise", "share", "upload", "confirm", "unmask")
NOBODY = {"round": 2, "stage": "advertise", "clients": 4}  # round 2 aborts


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("kill") / "data.jsonl", conversations(24))


def config(data: Path, **changes: Any) -> Config:
    """Seeded, so that a twin can be compared; the server's optimizer has a memory."""
    train = {"rounds": ROUNDS, "local_steps": 1, "server_optimizer": "fedadam"}
    measured = {"examples": 4, "progress_examples": 3, "samples": 1}
    chosen = {"seed": 7, "train": train, "eval": measured, **changes}
    return tiny(data, **chosen)


@functools.cache
def twin(data: Path, folder: Path, released: tuple[int, ...]) -> list[tuple[int, str]]:
    """Round and model of each release of a run never killed, in which the other rounds abort."""
    faults = [{**NOBODY, "round": n} for n in range(1, ROUNDS + 1) if n not in released]
    run_dir = folder / "".join(["twin", *map(str, released)])
    run_dir.mkdir()
    simulate(config(data, faults=faults), run_dir)
    return releases(read_ledger(run_dir / "ledger.jsonl"))


def releases(entries: Sequence[LedgerEntry]) -> list[tuple[int, str]]:
    bodies = [entry.body for entry in entries]
    return [(body.round, body.model_after) for body in bodies if isinstance(body, Release)]


def of(entries: Sequence[LedgerEntry], kind: type) -> list[Any]:
    return [entry.body for entry in entries if isinstance(entry.body, kind)]


def device_lines(run_dir: Path) -> dict[str, bytes]:
    """Each device's ledger, as it is stored, up to its last whole line."""
    found = {}
    for path in sorted((run_dir / "devices").glob("*/spend.jsonl")):
        stored = path.read_bytes()
        found[path.parent.name] = stored[: stored.rfind(b"\n") + 1]
    return found


def answered(stored: bytes, kind: str) -> Counter[str]:
    lines = [json.loads(line) for line in stored.splitlines()]
    return Counter(line["body"]["instruction"] for line in lines if line["kind"] == kind)


def taken_up(chosen: Config, run_dir: Path) -> tuple[Simulation, list[LedgerEntry]]:
    """Resume a killed run and hold everything that must hold against what was on disk before."""
    before, _torn = read_whole_lines(run_dir / "ledger.jsonl")
    devices_before = device_lines(run_dir)
    result = simulate(chosen, run_dir, is_resumed=True)
    entries = read_ledger(run_dir / "ledger.jsonl")

    # the server's ledger goes on from what it said, in one chain that an auditor accepts
    assert entries[: len(before)] == before
    checked = audit(
        run_dir,
        server_key=fingerprint(SigningKey.load(run_dir / "server.pem").public_bytes),
        roster=run_dir / "roster.txt",
        authority=run_dir / "authority" / "authority.pem",
    )
    assert checked.ok, [finding for finding in checked.findings if not finding.ok]

    # every intent, whatever became of it, is spent once and none is retried
    intents, opened = of(entries, Intent), of(entries, Open)[0]
    numbers = [intent.round for intent in intents]
    assert numbers == sorted(set(numbers))
    assert max(numbers) <= ROUNDS
    cut_off = [body for body in of(entries, Resume) if body.open_intent is not None]
    outcomes = len(of(entries, Release)) + len(of(entries, Abort)) + len(cut_off)
    assert len(intents) == outcomes
    counted = spends(chosen, [round_event(chosen, opened.dimension)] * outcomes)
    stated = result.report.totals.epsilons
    assert stated == {row: cost.epsilon for row, cost in counted.items()}

    # and so it is on the devices: nothing lost, nothing twice, nothing the server did not intend
    intended = {intent.instruction_sha256 for intent in intents}
    by_hash = {entry.hash: entry.body for entry in entries if isinstance(entry.body, Intent)}
    devices = device_lines(run_dir)
    for name, stored in devices.items():
        assert stored.startswith(devices_before.get(name, b""))
        accepted, spent = answered(stored, "accepted"), answered(stored, "spent")
        assert set(accepted.values()) | set(spent.values()) <= {1}
        assert set(spent) <= set(accepted) <= intended
    for released in of(entries, Release):
        name = by_hash[released.intent].instruction_sha256
        assert sum(answered(stored, "spent")[name] for stored in devices.values()) == 4

    # the models are those of a run that was never killed
    assert (
        result.report.model.final_sha256 == (releases(entries) or [(0, opened.model_sha256)])[-1][1]
    )
    done = tuple(number for number, _ in releases(entries))
    twins = run_dir.parent.parent / "twins"
    twins.mkdir(exist_ok=True)
    assert releases(entries) == twin(Path(chosen.data.path), twins, done)
    curve = [point.round for point in result.report.quality.validation]
    assert curve == list(done)
    assert not (run_dir / "checkpoints").exists()
    return result, entries


@pytest.fixture
def run_dir(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return tmp_path_factory.mktemp("run") / "run"


def lost(entries: Sequence[LedgerEntry]) -> list[int]:
    """Rounds that were cut off."""
    cut = {body.open_intent for body in of(entries, Resume)}
    return [e.body.round for e in entries if e.hash in cut and isinstance(e.body, Intent)]


@pytest.mark.parametrize("when", ["before", "torn"])
def test_killed_before_the_first_entry_nothing_was_spent_and_nothing_is_resumed(
    data: Path, run_dir: Path, when: str
) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("ledger", "open", when))
    assert not any(answered(stored, "accepted") for stored in device_lines(run_dir).values())
    with pytest.raises(RunError, match="nothing to resume; nothing was spent; start a new run"):
        simulate(chosen, run_dir, is_resumed=True)


# Whom a kill at this place costs: the round that was under way, or none.
LEDGER = [
    (Place("ledger", "open", "after"), []),
    (Place("ledger", "intent", "before", 2), []),
    (Place("ledger", "intent", "torn", 2), []),
    (Place("ledger", "intent", "after", 2), [2]),
    (Place("ledger", "release", "before", 2), [2]),
    (Place("ledger", "release", "torn", 2), [2]),
    (Place("ledger", "release", "after", 2), []),
    (Place("ledger", "release", "after", 3), []),
    (Place("ledger", "close", "before"), []),
    (Place("ledger", "close", "torn"), []),
    (Place("ledger", "close", "after"), []),
    (Place("checkpoint", "reserve", "after", 3), []),
    (Place("checkpoint", "save", "before", 2), [2]),
    (Place("file", "safetensors", "before", 2), [2]),  # a checkpoint, written but not in place
    (Place("checkpoint", "save", "after", 2), [2]),
    (Place("checkpoint", "keep_only", "before", 2), []),
    (Place("file", "safetensors", "before", 4), []),  # the run's model
    (Place("file", "safetensors", "after", 4), []),
    (Place("file", "report.html", "after"), []),
    (Place("file", "report.sig", "after"), []),
    (Place("file", "report.json", "before"), []),
]
MESSAGES = [
    # the second device's, in the second round
    *((Place("message", stage, "reply", 6), [2]) for stage in STAGES),
    *(
        pytest.param(Place("message", stage, "request", 6), [2], marks=pytest.mark.slow)
        for stage in STAGES
    ),
]
DEVICES = [
    (Place("device", kind, when, 6), [2])
    for kind in ("accepted", "spent")
    for when in ("before", "torn", "after")
]


@pytest.mark.parametrize(("place", "cost"), [*LEDGER, *MESSAGES, *DEVICES], ids=str)
def test_a_run_killed_here_goes_on_and_has_lost_exactly(
    data: Path, run_dir: Path, place: Place, cost: list[int]
) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, place)
    result, entries = taken_up(chosen, run_dir)
    assert lost(entries) == cost
    assert result.report.totals.rounds_released == ROUNDS - len(cost)


@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_killed_around_an_abort_the_round_is_spent_once(
    data: Path, run_dir: Path, when: str
) -> None:
    chosen = config(data, faults=[NOBODY])
    run_until_killed(chosen, run_dir, Place("ledger", "abort", when))
    _, entries = taken_up(chosen, run_dir)
    assert lost(entries) == ([] if when == "after" else [2])


@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_a_resume_may_be_killed_too(data: Path, run_dir: Path, when: str) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("message", "upload", "reply", 6))
    run_until_killed(chosen, run_dir, Place("ledger", "resume", when), is_resumed=True)
    _, entries = taken_up(chosen, run_dir)
    assert lost(entries) == [2]
    assert len(of(entries, Resume)) == (2 if when == "after" else 1)


def test_two_rounds_in_a_row_may_be_killed(data: Path, run_dir: Path) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("message", "unmask", "reply", 4))
    run_until_killed(chosen, run_dir, Place("ledger", "release", "torn"), is_resumed=True)
    result, entries = taken_up(chosen, run_dir)
    assert lost(entries) == [1, 2]
    assert result.report.totals.rounds_released == 1
    assert result.report.resumes == 2


def test_a_run_killed_in_its_last_round_has_no_round_left(data: Path, run_dir: Path) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("message", "confirm", "reply", 10))
    _, entries = taken_up(chosen, run_dir)
    assert lost(entries) == [3]
    assert of(entries, Resume)[0].roster == []


def test_a_torn_line_is_named_by_the_audit_and_kept_by_the_resume(
    data: Path, run_dir: Path
) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("ledger", "release", "torn", 2))
    _, torn = read_whole_lines(run_dir / "ledger.jsonl")
    with pytest.raises(LedgerError, match=r"last line \(5\) is torn.*Resume the run"):
        audit(run_dir)
    _, entries = taken_up(chosen, run_dir)
    (resumed,) = of(entries, Resume)
    assert bytes.fromhex(resumed.torn) == torn
    assert resumed.torn_bytes == len(torn) > 100


def test_an_interrupted_run_that_was_closed_gets_its_report(data: Path, run_dir: Path) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("ledger", "close", "after"))
    lines = (run_dir / "ledger.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"closed but has no report.*--resume"):
        audit(run_dir)
    taken_up(chosen, run_dir)
    assert (run_dir / "ledger.jsonl").read_bytes() == lines


def test_a_finished_run_is_not_resumed(data: Path, run_dir: Path) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("file", "report.json", "after"))
    assert audit(run_dir).ok
    with pytest.raises(RunError, match="finished and nothing is left to resume"):
        simulate(chosen, run_dir, is_resumed=True)


def test_what_a_run_promised_cannot_change_on_resume(data: Path, run_dir: Path) -> None:
    chosen = config(data)
    run_until_killed(chosen, run_dir, Place("ledger", "intent", "after", 2))
    stored = (run_dir / "ledger.jsonl").read_bytes()
    privacy = chosen.privacy.model_copy(update={"noise_multiplier": 0.9})
    weaker = chosen.model_copy(update={"privacy": privacy})
    with pytest.raises(RunError, match=r"privacy\.noise_multiplier: differs"):
        simulate(weaker, run_dir, is_resumed=True)
    key = run_dir / "server.pem"
    honest = key.read_bytes()
    key.unlink()
    SigningKey(b"\1" * 32).save(key)
    with pytest.raises(LedgerError, match="not a continuation under this key"):
        simulate(chosen, run_dir, is_resumed=True)
    key.write_bytes(honest)
    (checkpoint,) = (run_dir / "checkpoints").glob("*.safetensors")
    kept = checkpoint.read_bytes()
    checkpoint.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(RunError, match="was changed; it is not the model that the ledger names"):
        simulate(chosen, run_dir, is_resumed=True)
    checkpoint.unlink()
    with pytest.raises(RunError, match="missing or unreadable"):
        simulate(chosen, run_dir, is_resumed=True)
    assert (run_dir / "ledger.jsonl").read_bytes() == stored
    checkpoint.write_bytes(kept)
    taken_up(chosen, run_dir)


def test_the_command_resumes_by_directory_and_names_a_key_that_was_changed(
    data: Path, run_dir: Path
) -> None:
    from typer.testing import CliRunner

    from fedattn import cli

    run_until_killed(config(data), run_dir, Place("ledger", "intent", "after", 2))
    resume = ["simulate", "--resume", str(run_dir), "--json"]
    changed = CliRunner().invoke(cli.app, [*resume, "--set", "train.rounds=9"])
    assert isinstance(changed.exception, RunError)
    assert str(changed.exception).startswith("train.rounds: differs from the run's own config")
    elsewhere = CliRunner().invoke(cli.app, [*resume, "--out", str(run_dir.parent / "other")])
    assert "drop --out" in str(elsewhere.exception)
    done = CliRunner().invoke(cli.app, resume)
    assert done.exit_code == 0, done.exception
    shown = json.loads(done.stdout)
    assert (shown["rounds"], shown["outcome"]) == (ROUNDS - 1, "completed")
    again = CliRunner().invoke(cli.app, resume)
    assert "nothing is left to resume" in str(again.exception)


def test_sampled_clients_are_drawn_on_as_if_nothing_had_happened(
    tmp_path: Path, data: Path
) -> None:
    chosen = tiny(
        data,
        seed=3,
        data={"clients": 8},
        train={"rounds": 3, "local_steps": 1},
        privacy={
            "unit": "client",
            "noise": "server",
            "client_rate": 0.7,
            "sampling_rate": 1.0,
            "max_participations": 3,
            "epsilon_budget": {"outsider": 200.0},
        },
        secagg={"threshold": 3, "max_colluding": 1, "dropout_share": 0.2},
        eval={"examples": 2, "progress_examples": 0, "samples": 0},
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run_until_killed(chosen, killed, Place("ledger", "release", "after"))
    simulate(chosen, killed, is_resumed=True)
    whole.mkdir()
    simulate(chosen, whole)
    found, expected = (read_ledger(path / "ledger.jsonl") for path in (killed, whole))
    assert [body.roster for body in of(found, Intent)] == [
        body.roster for body in of(expected, Intent)
    ]
    assert releases(found) == releases(expected) != []
