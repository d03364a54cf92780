"""Whatever a client does, the sum is of the accepted replies, and the run goes on without it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode

from fedattn.errors import RunError
from fedattn.flower.exchange import replies
from fedattn.flower.grid import EmbeddedGrid
from tests.flower.answering import LENGTH, Take, words_of

NODES = (1, 2, 3)


def engine(workers, app="tests.flower.unruly:app", **keywords):
    return EmbeddedGrid(app, {node: {} for node in NODES}, workers=workers, **keywords)


def summed(grid, timeout_s=5.0, **do):
    """Error replies by node, and the sum, which is checked to be of all others that came."""
    contents = RecordDict({"do": ConfigRecord(do)})
    messages = [grid.create_message(contents, "train.upload", node, "1") for node in NODES]
    errors, total = {}, np.zeros(LENGTH, np.uint32)
    came = list(
        replies(grid, messages, timeout_s, lambda sent: grid.push_summed(sent, LENGTH, Take()))
    )
    for place, reply in came:
        if reply.has_error():
            errors[NODES[place]] = reply.error
        else:
            total += words_of(NODES[place])
    np.testing.assert_array_equal(grid.take_sum(), total)
    assert sorted(place for place, _ in came) == list(range(len(NODES)))
    return errors


@pytest.fixture(scope="module")
def two_workers():
    with engine(2) as grid:
        yield grid


@pytest.mark.parametrize(
    "fate",
    [
        "to no message",
        "to another's message",
        "another message as its own",
        "from another",
        "as another",
        "a reply without bytes",
        "a state without bytes",
        "an error without bytes",
        "no message",
        "sys.exit",
    ],
)
def test_a_reply_that_is_none_is_an_error_and_not_in_the_sum_wherever_it_arose(two_workers, fate):
    reasons = []
    for grid in (engine(0), two_workers, engine(0, taps=[lambda message: None])):
        before = grid.worker_pids
        errors = summed(grid, **{"2": fate})
        assert {node: error.code for node, error in errors.items()} == {
            2: ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        }
        reasons.append(errors[2].reason)
        assert grid._contexts.stored(1)
        assert not grid._contexts.stored(2)  # as it was
        assert grid.worker_pids[: len(before)] == before
    assert len(set(reasons)) == 1


@pytest.fixture
def forked(tmp_path):
    """A folder that names what clients forked; the processes end with the test."""
    yield tmp_path
    for path in tmp_path.iterdir():
        os.kill(int(path.name), signal.SIGKILL)


def test_a_worker_is_missed_though_what_a_client_forked_in_it_lives_on(forked):
    with engine(1) as grid:
        assert summed(grid, forked=str(forked), **{"2": "fork"}) == {}
        os.kill(*grid.worker_pids, signal.SIGKILL)
        errors = summed(grid, forked=str(forked), **{"3": "fork and die"})
        assert {node: error.code for node, error in errors.items()} == {
            3: ErrorCode.CLIENT_APP_CRASHED
        }
    states = [(Path("/proc") / path.name / "stat").read_text() for path in forked.iterdir()]
    assert [state.rpartition(")")[2].split()[0] for state in states] == ["S", "S"]  # asleep


# ---- a worker that is killed while it starts


def hard_to_start(monkeypatch, tmp_path, dies):
    monkeypatch.setenv("HARD_TO_START", str(tmp_path / "starts"))
    monkeypatch.setenv("HARD_TO_START_DIES", dies)
    return engine(1, "tests.flower.hard_to_start:app")


def test_a_replacement_killed_while_it_starts_is_replaced(monkeypatch, tmp_path):
    with hard_to_start(monkeypatch, tmp_path, "2 3 4") as grid:
        errors = summed(grid, **{"2": "kill"})
    assert {node: error.code for node, error in errors.items()} == {2: ErrorCode.CLIENT_APP_CRASHED}
    assert len((tmp_path / "starts").read_text()) == 5


@pytest.mark.parametrize(("dies", "starts"), [("1", 1), ("2 3 4 5", 5)])
def test_the_run_ends_if_the_first_worker_or_one_after_another_cannot_start(
    monkeypatch, tmp_path, dies, starts
):
    with (
        hard_to_start(monkeypatch, tmp_path, dies) as grid,
        pytest.raises(RunError, match=f"-9 before it began anything, try {len(dies.split())}"),
    ):
        summed(grid, **{"1": "kill"})
    assert len((tmp_path / "starts").read_text()) == starts
