import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedattn import device
from fedattn.audit import audit
from fedattn.checkpoint import load_model, read_vector, released_sha256, start_model
from fedattn.entries import Abort, Close, Intent, Open, Release
from fedattn.errors import RunError
from fedattn.flower.held_model import HeldModel
from fedattn.flower.observer import SilentObserver
from fedattn.instruction import Instruction
from fedattn.ledger import read_ledger
from fedattn.model import trainable_names
from fedattn.privacy.events import round_event
from fedattn.simulate import new_run_dir, simulate
from tests.federation import conversations, tiny, write


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", conversations())


def kinds(run_dir):
    return [entry.kind for entry in read_ledger(run_dir / "ledger.jsonl")]


def bodies(run_dir, kind):
    return [
        entry.body
        for entry in read_ledger(run_dir / "ledger.jsonl")
        if isinstance(entry.body, kind)
    ]


def run(config, tmp_path, **keywords):
    run_dir = new_run_dir(config, tmp_path / "run")
    return simulate(config, run_dir, **keywords)


def test_a_run_leaves_a_ledger_a_model_and_a_report_that_audit_accepts(data, tmp_path):
    result = run(tiny(data), tmp_path)
    assert result.exit_code == 0
    assert kinds(result.run_dir) == ["open", *["intent", "release"] * 2, "close"]
    checked = audit(
        result.run_dir,
        server_key=result.server_fingerprint,
        roster=result.run_dir / "roster.txt",
        authority=result.run_dir / "authority" / "authority.pem",
    )
    assert checked.ok, [finding for finding in checked.findings if not finding.ok]
    shown = result.to_json()
    assert {"run_dir", "rounds", "epsilon", "delta", "bpb_before", "bpb_after", "wall_s"} <= set(
        shown
    )
    assert 0 < shown["epsilon"] < 50
    assert shown["rounds"] == 2


def test_the_stored_model_is_the_one_that_the_ledger_names(data, tmp_path):
    config = tiny(data)
    result = run(config, tmp_path)
    model = load_model(result.run_dir / "model.safetensors")
    start = bodies(result.run_dir, Open)[0].start_sha256
    vector = read_vector(model, trainable_names(model, "all"))
    assert released_sha256(start, vector) == bodies(result.run_dir, Close)[0].model_sha256
    first = start_model(config.model)
    assert not vector.equal(read_vector(first, trainable_names(first, "all")))


def test_a_round_goes_on_without_two_of_eight_and_aborts_without_six(data, tmp_path):
    config = tiny(
        data,
        data={"clients": 8},
        secagg={"threshold": 5, "max_colluding": 1},
        train={"rounds": 3},
        faults=[
            {"round": 1, "stage": "upload", "clients": 2},
            {"round": 2, "stage": "upload", "clients": 6},
        ],
    )
    result = run(config, tmp_path)
    assert kinds(result.run_dir) == [
        "open", "intent", "release", "intent", "abort", "intent", "release", "close",
    ]  # fmt: skip
    released = bodies(result.run_dir, Release)
    assert [body.survivors for body in released] == [6, 8]
    aborted = bodies(result.run_dir, Abort)[0]
    assert (aborted.round, aborted.stage, aborted.reason) == (2, "upload", "threshold")
    # the aborted round left the model alone and is spent all the same
    assert released[0].model_after == released[1].model_before
    assert len(bodies(result.run_dir, Intent)) == 3
    whole = run(config.model_copy(update={"faults": []}), tmp_path / "whole")
    assert result.report.totals.epsilon == whole.report.totals.epsilon
    assert audit(result.run_dir, server_key=result.server_fingerprint).ok


@pytest.mark.parametrize("stage", ["advertise", "share", "upload", "confirm", "unmask"])
def test_one_client_may_vanish_at_any_stage(data, tmp_path, stage):
    config = tiny(data, train={"rounds": 1}, faults=[{"round": 1, "stage": stage, "clients": 1}])
    result = run(config, tmp_path)
    expected = 4 if stage in ("confirm", "unmask") else 3
    assert [body.survivors for body in bodies(result.run_dir, Release)] == [expected]


def test_a_lost_upload_is_spent_on_the_device(data, tmp_path):
    config = tiny(data, train={"rounds": 1}, faults=[{"round": 1, "stage": "upload", "clients": 1}])
    result = run(config, tmp_path)
    lines = (result.run_dir / "devices" / "client-1" / "spend.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["open", "accepted", "spent"]


def test_the_round_that_would_pass_the_budget_is_not_started(data, tmp_path):
    config = tiny(data, train={"rounds": 50}, privacy={"epsilon_budget": 4.5})
    result = run(config, tmp_path)
    assert result.report.outcome == "budget"
    assert result.exit_code == 3
    assert result.report.totals.epsilon <= 4.5
    assert 0 < result.report.totals.rounds_released < 50
    assert audit(result.run_dir, server_key=result.server_fingerprint).ok


def test_a_run_without_a_released_round_is_an_aborted_one(data, tmp_path):
    config = tiny(data, train={"rounds": 1}, faults=[{"round": 1, "stage": "share", "clients": 4}])
    result = run(config, tmp_path)
    assert (result.report.outcome, result.exit_code) == ("aborted", 4)
    assert result.report.quality.bpb_before == result.report.quality.bpb_after


class StopsAfterOneRound(SilentObserver):
    stops = False

    def round_ended(self, summary):
        self.stops = True

    def stop_requested(self):
        return self.stops


def test_asked_once_to_stop_a_run_closes_the_round_and_reports(data, tmp_path):
    config = tiny(data, train={"rounds": 9})
    result = run(config, tmp_path, observer=StopsAfterOneRound())
    assert (result.report.outcome, result.exit_code) == ("interrupted", 130)
    assert result.report.totals.rounds_released == 1
    assert audit(result.run_dir, server_key=result.server_fingerprint).ok


class AbortsInTheSecondUpload(SilentObserver):
    def stage(self, number, stage, done, expected):
        if (number, stage, done) == (2, "upload", 1):
            raise KeyboardInterrupt


def test_asked_twice_the_ledger_is_whole_and_the_round_is_spent(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tiny(data, train={"rounds": 9}), tmp_path, observer=AbortsInTheSecondUpload())
    assert kinds(tmp_path / "run") == ["open", "intent", "release", "intent", "abort", "close"]
    assert bodies(tmp_path / "run", Abort)[0].reason == "interrupted"
    assert bodies(tmp_path / "run", Close)[0].outcome == "interrupted"


def test_a_real_interrupt_ends_the_command_with_130_and_a_report(data, tmp_path):
    config_path = tmp_path / "config.yaml"
    config_path.write_text(tiny(data, train={"rounds": 400}).canonical_json())
    command = [sys.executable, "-m", "fedattn.cli", "simulate", str(config_path)]
    command += ["--out", str(tmp_path / "run"), "--json", "--set", "privacy.noise_multiplier=9.0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd(),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    ledger = tmp_path / "run" / "ledger.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        ledger.exists() and b"release" in ledger.read_bytes()
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    shown = json.loads(out)
    assert shown["outcome"] == "interrupted"
    assert audit(tmp_path / "run", server_key=shown["server_key"]).ok


def test_no_noise_is_said_loudly_and_one_client_is_enough(data, tmp_path):
    config = tiny(
        data,
        data={"clients": 1},
        secagg={"threshold": 1, "max_colluding": 0},
    ).model_dump()
    config["privacy"] = {"unit": "none", "noise": "none", "sampling_rate": 0.5}
    from fedattn.config import config_from_dict

    result = run(config_from_dict(config), tmp_path)
    assert result.to_json()["epsilon"] == "infinity"
    assert any("NOT PRIVATE" in note for note in result.report.notes)
    assert audit(result.run_dir, server_key=result.server_fingerprint).ok


def test_a_seeded_run_repeats_bit_for_bit_and_says_that_it_is_not_private(data, tmp_path):
    config = tiny(data, seed=5)
    first, second = run(config, tmp_path / "a"), run(config, tmp_path / "b")
    assert first.report.model.final_sha256 == second.report.model.final_sha256
    assert any("NOT PRIVATE: seeded" in note for note in first.report.notes)
    assert all(claim.epsilon == float("inf") for claim in first.report.claims)


def test_an_unseeded_run_never_repeats(data, tmp_path):
    first, second = run(tiny(data), tmp_path / "a"), run(tiny(data), tmp_path / "b")
    assert first.report.model.final_sha256 != second.report.model.final_sha256


def test_an_existing_run_is_never_overwritten(data, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"exists; choose another --out"):
        new_run_dir(tiny(data), tmp_path / "run")


def test_devices_of_another_authority_are_left_out_and_audit_finds_them(data, tmp_path):
    first, second = run(tiny(data), tmp_path / "a"), run(tiny(data), tmp_path / "b")
    foreign = second.run_dir / "authority" / "authority.pem"
    checked = audit(first.run_dir, server_key=first.server_fingerprint, authority=foreign)
    assert [finding.check for finding in checked.findings if not finding.ok] == ["certificates"]
    (first.run_dir / "certificates.pem").write_bytes(b"")
    own = first.run_dir / "authority" / "authority.pem"
    checked = audit(first.run_dir, server_key=first.server_fingerprint, authority=own)
    assert [finding.check for finding in checked.findings if not finding.ok] == ["certificates"]
    assert "4 of 4 devices have no certificate" in str(checked.findings)


def test_a_device_that_pins_no_authority_takes_no_part(data, tmp_path, monkeypatch):
    original = device.Device.join

    def forgetful(self, certificate, authority):
        if self.index != 1:
            original(self, certificate, authority)

    monkeypatch.setattr(device.Device, "join", forgetful)
    result = run(tiny(data, train={"rounds": 1}), tmp_path)
    assert [body.survivors for body in bodies(result.run_dir, Release)] == [3]
    assert len(bodies(result.run_dir, Open)[0].roster) == 3
    assert audit(result.run_dir, server_key=result.server_fingerprint).ok


@pytest.mark.parametrize("stage", ["advertise", "share", "upload", "confirm", "unmask"])
def test_a_round_that_all_leave_aborts_at_the_stage_where_they_left(data, tmp_path, stage):
    config = tiny(data, train={"rounds": 1}, faults=[{"round": 1, "stage": stage, "clients": 4}])
    result = run(config, tmp_path)
    aborted = bodies(result.run_dir, Abort)[0]
    assert (aborted.stage, aborted.reason) == (stage, "threshold")


def test_a_large_cohort_masks_with_random_neighbours(tmp_path):
    data = write(tmp_path / "data.jsonl", conversations())
    config = tiny(
        data,
        data={"clients": 120},
        train={"rounds": 1, "local_steps": 1},
        secagg={"threshold": 64, "max_colluding": 6, "dropout_share": 0.05},
        faults=[{"round": 1, "stage": "upload", "clients": 3}],
    )
    result = run(config, tmp_path)
    assert [body.survivors for body in bodies(result.run_dir, Release)] == [117]
    assert audit(result.run_dir, server_key=result.server_fingerprint).ok
    instruction = Instruction(
        config=config,
        run="00" * 32,
        round=1,
        start_sha256="00" * 32,
        model_sha256="00" * 32,
        dimension=10,
        ledger_head="00" * 32,
        roster=tuple(bytes([i]) * 32 for i in range(120)),
        event=round_event(config, 10),
    )
    assert 0 < instruction.spec.share_threshold < instruction.spec.degree < 60


def test_a_run_interrupted_right_after_a_release_closes_with_that_model(
    data, tmp_path, monkeypatch
):
    """A second Ctrl-C: what the ledger names last is what it closes with, and audit agrees."""
    config, run_dir = tiny(data, train={"rounds": 2, "local_steps": 1}), tmp_path / "run"
    run_dir.mkdir()

    def struck(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldModel, "take", struck)
    with pytest.raises(KeyboardInterrupt):
        simulate(config, run_dir)
    monkeypatch.undo()
    result = simulate(config, run_dir, is_resumed=True)
    assert result.report.totals.rounds_released == 1
    assert audit(run_dir, server_key=result.server_fingerprint).ok
