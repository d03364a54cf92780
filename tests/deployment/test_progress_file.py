"""A ServerApp's progress crosses to another process as a file, whole lines at a time."""

from __future__ import annotations

import json

import pytest

from fedattn.errors import EXIT_ABORTED, RunError, ThresholdError
from fedattn.flower.observer import RoundSummary
from fedattn.flower.progress_file import (
    PROGRESS_FILE,
    STOP_FILE,
    FileObserver,
    Follower,
    seconds_per_round,
    seconds_per_trip,
    tell,
)
from fedattn.flower.server_app import _alone

SUMMARY = RoundSummary(1, True, 5, 4, {"outsider": 1.5, "server": float("inf")}, None, None)


class Told:
    """Remembers what an Observer is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def __getattr__(self, name):
        return lambda *args, **fields: self.calls.append((name, args or fields))


def test_a_follower_tells_what_the_observer_was_told(tmp_path):
    follower, told = Follower(tmp_path), Told()
    with FileObserver(tmp_path) as observer:
        observer.started(2, 5, 2.5)
        observer.stage(1, "share", 3, 5)
        observer.note("client 2 left")
        observer.round_ended(SUMMARY)
        for entry in follower.read():
            tell(told, entry)
    assert told.calls == [
        ("started", {"rounds": 2, "clients": 5, "bpb": 2.5}),
        ("stage", {"number": 1, "stage": "share", "done": 3, "expected": 5}),
        ("note", {"text": "client 2 left"}),
        ("round_ended", (SUMMARY,)),
    ]
    assert list(follower.read()) == []


def test_a_line_that_is_still_being_written_waits(tmp_path):
    follower, path = Follower(tmp_path), tmp_path / PROGRESS_FILE
    path.write_text('{"kind": "note", ')
    assert list(follower.read()) == []
    path.write_text('{"kind": "note", "text": "a"}\n')
    assert [entry["text"] for entry in follower.read()] == ["a"]


def test_a_follower_of_a_resumed_run_starts_where_the_file_ended(tmp_path):
    with FileObserver(tmp_path) as observer:
        observer.note("before the kill")
    follower = Follower(tmp_path)
    with FileObserver(tmp_path) as observer:
        observer.note("after it")
    assert [entry["text"] for entry in follower.read()] == ["after it"]


def test_an_error_that_ends_the_run_is_written_with_its_exit_code(tmp_path):
    with pytest.raises(ThresholdError), FileObserver(tmp_path):
        raise ThresholdError("3 devices, need 4")
    entry = json.loads((tmp_path / PROGRESS_FILE).read_text())
    assert (entry["kind"], entry["text"]) == ("failed", "3 devices, need 4")
    assert entry["exit_code"] == EXIT_ABORTED


def test_the_stop_file_asks_to_stop_and_is_forgotten_by_the_next_process(tmp_path):
    with FileObserver(tmp_path) as observer:
        assert not observer.stop_requested()
        (tmp_path / STOP_FILE).touch()
        assert observer.stop_requested()
    with FileObserver(tmp_path) as observer:
        assert not observer.stop_requested()


def test_trips_and_rounds_are_timed_from_first_message_to_last_reply():
    def stage(at, done, expected=2):
        return {"kind": "stage", "at": at, "done": done, "expected": expected}

    entries = [
        stage(1.0, 0), stage(1.5, 1), stage(3.0, 2),
        stage(4.0, 0), stage(5.0, 1),  # one stayed silent: no trip to time
        {"kind": "round_ended", "at": 9.0},
    ]  # fmt: skip
    assert seconds_per_trip(entries) == [2.0]
    assert seconds_per_round(entries) == [8.0]


def test_a_run_that_is_under_way_is_left_alone_by_a_second_process(tmp_path):
    with FileObserver(tmp_path) as first:
        (tmp_path / STOP_FILE).touch()
        before = (tmp_path / PROGRESS_FILE).read_bytes()
        with pytest.raises(RunError, match="this run is under way; wait for it, or stop it"):
            FileObserver(tmp_path)
        assert first.stop_requested()
        assert (tmp_path / PROGRESS_FILE).read_bytes() == before


def test_one_run_at_a_time_on_a_server(tmp_path):
    refused = pytest.raises(RunError, match="another run of this server is under way")
    with _alone(tmp_path), refused, _alone(tmp_path):
        pass
    with _alone(tmp_path):  # free again
        pass
