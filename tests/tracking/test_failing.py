"""A tracker that fails is dropped with a note; a run neither stops nor notices."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import wandb

from fedattn.config import ROWS
from fedattn.errors import ConfigError, RunError
from fedattn.flower.observer import RoundSummary, SilentObserver
from fedattn.simulate import simulate
from fedattn.tracking import NAMES, Tracking, require_trackers, tracking, tracking_folder
from tests.federation import conversations, tiny, write
from tests.tracking.read_back import event_file, wandb_charts, wandb_file

CONFIG = tiny(Path("chats.jsonl"))
SUMMARY = RoundSummary(1, True, 4, 4, dict.fromkeys(ROWS, 2.0), None, None)


class Notes(SilentObserver):
    """Remembers what it is told; asks to stop when told to."""

    def __init__(self):
        self.said, self.rounds, self.stops = [], [], False

    def note(self, text):
        self.said.append(text)

    def round_ended(self, summary):
        self.rounds.append(summary.round)

    def stop_requested(self):
        return self.stops


class Recorder:
    """A tracker that fails from its `fails_at`-th call on."""

    name = "recorder"

    def __init__(self, fails_at=99, error=None):
        self.calls, self._fails_at = [], fails_at
        self._error = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _called(self, what):
        self.calls.append(what)
        if len(self.calls) >= self._fails_at:
            raise self._error

    def begin(self, labels, config):
        self._called("begin")

    def log(self, step, values):
        self._called(step)

    def close(self, *, is_complete):
        self._called(is_complete)


def test_whichever_call_fails_the_run_and_the_other_trackers_go_on(tmp_path):
    data = write(tmp_path / "chats.jsonl", conversations())
    config = tiny(data, train={"rounds": 2, "local_steps": 1})
    notes, whole = Notes(), Recorder()
    broken = [Recorder(fails_at) for fails_at in range(1, 7)]
    (tmp_path / "run").mkdir()
    with Tracking(notes, [*broken, whole], config) as observer:
        result = simulate(config, tmp_path / "run", observer=observer)
        observer.finished(result.report)
    assert result.exit_code == 0
    assert whole.calls == ["begin", 0, 1, 2, 2, True]
    for calls, each in enumerate(broken, 1):
        assert each.calls == [*whole.calls[:calls], False], "closed once, and never called again"
    dropped = [each for each in notes.said if "dropped" in each]
    why = "dropped after OSError (No space left on device); the training goes on without it"
    assert dropped == [f"recorder: {why}"] * 6


def test_a_full_disk_drops_the_event_file(tmp_path, monkeypatch):
    """/dev/full takes no byte, like a disk that ran full."""
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode: real(Path("/dev/full"), "wb") if mode == "xb" else real(path),
    )
    notes = Notes()
    with tracking(notes, ["tensorboard"], tmp_path, CONFIG) as observer:
        observer.round_ended(SUMMARY)
        observer.round_ended(SUMMARY)
    assert notes.rounds == [1, 1]
    (said,) = notes.said
    assert "tensorboard: dropped after OSError (No space left on device)" in said


def test_a_folder_that_cannot_be_made_drops_both(tmp_path):
    (tmp_path / "file").write_text("in the way")
    notes = Notes()
    with tracking(notes, ["tensorboard", "wandb"], tmp_path / "file" / "t", CONFIG) as observer:
        observer.round_ended(SUMMARY)
    assert notes.rounds == [1]
    assert [said.partition(":")[0] for said in notes.said] == ["tensorboard", "wandb"]


def test_a_killed_wandb_process_is_dropped_and_the_command_ends_well(tmp_path):
    config = Path(__file__).parents[2] / "configs" / "tiny.yaml"
    script = [sys.executable, "-m", "tests.tracking.killed_core", str(config), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("wandb: dropped after ")
    assert second == "the run went on"


def test_an_interrupt_is_no_failure_of_a_tracker():
    """The second Ctrl-C ends a run wherever it is."""
    notes = Notes()
    with (
        pytest.raises(KeyboardInterrupt),
        Tracking(notes, [Recorder(2, KeyboardInterrupt())], CONFIG) as observer,
    ):
        observer.started(1, 4, 2.0)


def test_only_the_terminal_can_ask_a_run_to_stop():
    notes, tracker = Notes(), Recorder()
    tracker.stop_requested = lambda: True
    with Tracking(notes, [tracker], CONFIG) as observer:
        assert not observer.stop_requested()
        notes.stops = True
        assert observer.stop_requested()


def test_stages_and_notes_reach_no_tracker():
    tracker = Recorder()
    with Tracking(Notes(), [tracker], CONFIG) as observer:
        observer.stage(1, "upload", 2, 4)
        observer.note("node 102 left")
    assert tracker.calls == ["begin", False]


def test_an_unknown_tracker_is_an_error_before_anything_starts():
    with pytest.raises(ConfigError, match=r"--track mlflow: must be one of tensorboard, wandb"):
        require_trackers(["tensorboard", "mlflow"])


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_names_the_extra(name, monkeypatch):
    for package in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(
        RunError, match=r"is not installed; run `pip install 'fedattn\[tracking\]'`"
    ):
        require_trackers([name])


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_a_package_s_name_is_no_package(name, monkeypatch, tmp_path):
    package = name.partition("-")[0]
    (tmp_path / package).mkdir()  # as a run's own output might be
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(RunError, match="is not installed"):
        require_trackers([name])


def test_runs_lie_in_their_own_folder_or_side_by_side(tmp_path):
    run_dir = tmp_path / "quickstart-1"
    assert tracking_folder(run_dir, None) == run_dir / "tracking"
    assert tracking_folder(run_dir, tmp_path / "all") == tmp_path / "all" / "quickstart-1"


def test_a_resumed_run_goes_on_in_a_further_file(tmp_path):
    for number in (1, 2):
        summary = RoundSummary(number, True, 4, 4, dict.fromkeys(ROWS, 2.0), None, 2.5)
        with tracking(Notes(), ["tensorboard", "wandb"], tmp_path, CONFIG) as observer:
            observer.round_ended(summary)
    wandb.teardown()
    found, _, _ = event_file(tmp_path / "tensorboard")
    assert found["bpb/validation"] == [(1, 2.5), (2, 2.5)]
    assert len(list(tmp_path.rglob("*.wandb"))) == 2


class Listener:
    """Accepts connections on 127.0.0.1 and counts them; answers none."""

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def __exit__(self, *_):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def everything_goes_to(listener, patch):
    """What wandb or its process sends arrives at `listener`, whichever host it is for."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        patch.setenv(name, listener.url)
    for name in ("NO_PROXY", "no_proxy"):
        patch.delenv(name, raising=False)
    patch.setenv("WANDB_BASE_URL", listener.url)
    patch.setenv("WANDB_API_KEY", "0" * 40)


def test_offline_opens_no_connection(tmp_path, monkeypatch):
    with Listener() as listener:
        everything_goes_to(listener, monkeypatch)
        wandb.teardown()  # its process starts anew, in this environment
        with tracking(Notes(), ["wandb", "tensorboard"], tmp_path, CONFIG) as observer:
            observer.round_ended(SUMMARY)
        wandb.teardown()
        assert listener.connections == 0
        assert wandb_charts(wandb_file(tmp_path))["round/cohort"] == [(1, 4)]


@pytest.mark.slow
def test_online_does_and_a_site_that_does_not_answer_is_dropped(tmp_path, monkeypatch):
    """The other half of the test above: had wandb sent anything there, it would have been seen."""
    monkeypatch.setattr("fedattn.tracking.wandb_run._ENOUGH_S", 5.0)
    notes = Notes()
    with Listener() as listener:
        everything_goes_to(listener, monkeypatch)
        wandb.teardown()
        with tracking(notes, ["wandb-online"], tmp_path, CONFIG) as observer:
            observer.round_ended(SUMMARY)
        wandb.teardown()
        assert listener.connections > 0
    assert notes.rounds == [1]
    (said,) = notes.said
    assert said.startswith("wandb-online: dropped after ")


def test_online_without_a_login_asks_nobody_and_is_dropped(tmp_path):
    wandb.teardown()
    notes = Notes()
    with tracking(notes, ["wandb-online"], tmp_path, CONFIG) as observer:
        observer.round_ended(SUMMARY)
    (said,) = notes.said
    assert "run `wandb login`" in said
    assert notes.rounds == [1]
