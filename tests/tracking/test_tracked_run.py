"""A real run under both trackers: files equal the report, hold nothing private, change nothing."""

from __future__ import annotations

import getpass
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from fedattn.audit import audit
from fedattn.config import ROWS
from fedattn.entries import Abort, Intent, Release
from fedattn.flower.observer import SilentObserver
from fedattn.ledger import read_ledger
from fedattn.simulate import simulate
from fedattn.tracking import FOLDER, tracking
from fedattn.tracking.released import KEYS, config_values
from tests.federation import conversations, tiny, write
from tests.tracking.read_back import event_file, wandb_charts, wandb_file, wandb_records

MARK = "zqx"  # every word, id and name of the conversations carries it, and nothing else does
CHANGES = {
    "train": {"rounds": 4},
    "faults": [
        {"round": 2, "stage": "upload", "clients": 1},
        {"round": 3, "stage": "share", "clients": 4},
    ],
}


def marked():
    """Conversations none of whose words is in a config, a docstring or a path."""
    for item in conversations():
        turns = [
            {
                "speaker": f"{turn['speaker']}{MARK}",
                "text": " ".join(f"{word}{MARK}" for word in turn["text"].split()),
            }
            for turn in item["turns"]
        ]
        yield {"id": f"{item['id']}{MARK}", "turns": turns}


class Notes(SilentObserver):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def tracked(run_dir, config, names):
    run_dir.mkdir(parents=True)
    notes = Notes()
    with tracking(notes, names, run_dir / FOLDER, config) as observer:
        result = simulate(config, run_dir, observer=observer)
        observer.finished(result.report)
    if "wandb" in names:
        wandb.teardown()  # its process has written everything
    assert not [each for each in notes.said if "dropped" in each]
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory's result, and where its trackers wrote."""
    folder = tmp_path_factory.mktemp("tracked")
    data = write(folder / "chats.jsonl", list(marked()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "online")  # and yet it is offline
        patch.setenv("WANDB_USERNAME", "ann-in-the-environment")
        result = tracked(folder / "run", tiny(data, **CHANGES), ["tensorboard", "wandb"])
    return result, folder / "run" / FOLDER


@pytest.fixture(scope="module")
def charts(run):
    """The same charts, as each of the two trackers kept them."""
    _, folder = run
    return event_file(folder / "tensorboard")[0], wandb_charts(wandb_file(folder / "wandb"))


def bodies(run_dir, kind):
    entries = read_ledger(run_dir / "ledger.jsonl")
    return [each.body for each in entries if isinstance(each.body, kind)]


@pytest.mark.parametrize("which", [0, 1], ids=["tensorboard", "wandb"])
class TestBothTrackers:
    def test_the_last_epsilons_and_qualities_are_the_reports(self, run, charts, which):
        report, found = run[0].report, charts[which]
        for row in ROWS:
            step, value = found[f"epsilon/{row}"][-1]
            assert (step, value) == (4, pytest.approx(report.totals.epsilons[row], rel=1e-6))
        before, after = found["bpb/test"]
        assert before == (0, pytest.approx(report.quality.bpb_before, rel=1e-6))
        assert after == (4, pytest.approx(report.quality.bpb_after, rel=1e-6))
        wanted = [
            (each.round, pytest.approx(each.bpb, rel=1e-6)) for each in report.quality.validation
        ]
        assert found["bpb/validation"] == wanted
        assert found["total/released"] == [(4, report.totals.rounds_released)] == [(4, 3)]
        assert found["total/aborted"] == [(4, 1)]

    def test_who_took_part_is_what_the_ledger_says(self, run, charts, which):
        run_dir, found = run[0].run_dir, charts[which]
        intents, released = bodies(run_dir, Intent), bodies(run_dir, Release)
        aborted = {body.round for body in bodies(run_dir, Abort)}
        assert found["round/cohort"] == [(body.round, body.cohort) for body in intents]
        assert found["round/survivors"] == [(body.round, body.survivors) for body in released]
        assert [value for _, value in found["round/dropouts"]] == [0, 1, 0]
        assert aborted == {3}
        assert found["round/released"] == [(1, 1), (2, 1), (3, 0), (4, 1)]

    def test_epsilon_grows_with_every_round_also_an_aborted_one(self, charts, which):
        spent = [value for step, value in charts[which]["epsilon/server"]][:4]
        assert spent == sorted(set(spent))

    def test_no_key_is_off_the_list(self, charts, which):
        assert charts[which].keys() <= KEYS


def stored(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 2
    return b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)


def test_what_is_written_holds_no_word_of_a_conversation_and_no_client(run):
    result, folder = run
    held = stored(folder)
    assert MARK.encode() in (result.run_dir.parent / "chats.jsonl").read_bytes()
    assert MARK.encode() not in held
    assert b"client-" not in held
    for key in (result.run_dir / "roster.txt").read_text().splitlines()[1:]:
        assert key.encode() not in held


def test_what_is_written_says_nothing_of_the_machine(run):
    result, folder = run
    held = stored(folder)
    told = [
        socket.gethostname(),
        str(result.run_dir),
        str(Path.cwd()),
        sys.executable,
        os.uname().release,
    ]
    told += [str(Path.home()), "ann-in-the-environment", str(os.getpid())]
    held = held.replace(b"fedattn", b"")
    for each in told:
        if len(each) > 3:  # a host named "vm" is in half of all words
            assert each.encode() not in held, each
    assert f'"{getpass.getuser()}"'.encode() not in held
    for record in wandb_records(wandb_file(folder / "wandb")):
        assert record.WhichOneof("record_type") not in ("stats", "output", "output_raw", "files")
        if record.WhichOneof("record_type") == "environment":
            assert not record.environment.ListFields()
        if record.WhichOneof("record_type") == "run":
            assert (record.run.host, record.run.git.ByteSize()) == ("-", 0)


def test_wandb_stays_offline_whatever_the_environment_says(run):
    names = [path.name for path in (run[1] / "wandb").iterdir()]
    assert all(name.startswith("offline-run-") for name in names)


def test_the_config_is_there_and_a_path_of_it_is_not(run):
    _, folder = run
    texts = event_file(folder / "tensorboard")[1]
    assert '"privacy.unit": "conversation"' in texts["config/text_summary"]
    assert '"data.path": "chats.jsonl"' in texts["config/text_summary"]
    runs = [
        record.run
        for record in wandb_records(wandb_file(folder / "wandb"))
        if record.WhichOneof("record_type") == "run"
    ]
    kept = {item.key or "/".join(item.nested_key) for item in runs[0].config.update}
    assert kept - {"_wandb"} == config_values(tiny(Path("chats.jsonl"), **CHANGES)).keys()


def test_a_tracked_run_is_one_that_audit_accepts(run):
    result, _ = run
    assert audit(result.run_dir, server_key=result.server_fingerprint).ok


def test_tracking_changes_no_bit_of_a_seeded_run_and_labels_it_loudly(tmp_path):
    data = write(tmp_path / "chats.jsonl", conversations())
    config = tiny(data, seed=3, train={"rounds": 1}, secure_aggregation="arithmetic")
    plain = tracked(tmp_path / "plain", config, [])
    watched = tracked(tmp_path / "watched", config, ["tensorboard", "wandb"])
    assert plain.report.model.final_sha256 == watched.report.model.final_sha256
    _, texts, descriptions = event_file(watched.run_dir / FOLDER / "tensorboard")
    assert len(descriptions) > 5
    for shown in [texts["labels/text_summary"], *descriptions.values()]:
        assert "NOT PRIVATE" in shown
        assert "MASKS SKIPPED" in shown
    records = list(wandb_records(wandb_file(watched.run_dir / FOLDER / "wandb")))
    (started,) = [each.run for each in records if each.WhichOneof("record_type") == "run"][:1]
    assert list(started.tags) == ["NOT PRIVATE", "MASKS SKIPPED"]
    assert started.display_name == "[NOT PRIVATE] [MASKS SKIPPED] test"
    assert "NOT PRIVATE: seeded" in started.notes


def test_infinite_epsilon_is_logged_as_infinite(tmp_path):
    data = write(tmp_path / "chats.jsonl", conversations())
    config = tiny(data, train={"rounds": 1}).model_dump()
    config["privacy"] = {"unit": "none", "noise": "none", "sampling_rate": 0.5}
    from fedattn.config import config_from_dict

    result = tracked(tmp_path / "run", config_from_dict(config), ["tensorboard", "wandb"])
    folder = result.run_dir / FOLDER
    for found in (
        event_file(folder / "tensorboard")[0],
        wandb_charts(wandb_file(folder / "wandb")),
    ):
        assert found["epsilon/outsider"][-1][1] == math.inf


def test_importing_the_command_imports_no_tracker():
    code = "import fedattn.cli, sys; print(*{'wandb', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
