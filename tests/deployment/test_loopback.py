"""The real deployment on 127.0.0.1: rounds, logs, kills. Slow: dozens of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from fedattn.audit import audit
from fedattn.errors import EXIT_OK
from fedattn.flower.deployment.submit import FailedRunError
from tests.deployment.loopback import Loopback
from tests.deployment.shards import DEVICES, ROOT, config, entries, shards, spent

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("front", ["nginx", "python"])
def test_rounds_release_and_the_audit_with_pinned_keys_passes(home, tmp_path, front):
    made = shards(home, tmp_path)
    with Loopback(tmp_path, config(home, rounds=2), made, front=front) as federation:
        done = federation.run()
        assert done.exit_code == EXIT_OK
        assert done.report.totals.rounds_released == 2
        assert len(done.rounds_s) == 2
        assert len(done.trips_s) == 10
        result = audit(
            done.run_dir,
            server_key=done.server_fingerprint,
            roster=done.run_dir / "roster.txt",
            authority=federation.server / "authority.pem",
        )
        assert result.ok, [finding for finding in result.findings if not finding.ok]
        assert [spent(shard) for shard in made] == [2] * DEVICES
        pids = [federation.pid(each, "runner") for each in federation.devices]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_log_holds_a_word_of_a_conversation(home, tmp_path):
    made = shards(home, tmp_path)
    with Loopback(tmp_path, config(home), made) as federation:
        federation.run()
    words = {
        turn["text"]
        for line in made[0].read_text().splitlines()
        for turn in json.loads(line)["turns"]
    }
    logs = list(tmp_path.rglob("*.log"))
    assert len(logs) >= 2 + 2 * DEVICES
    for path in logs:
        text = path.read_text()
        assert not [word for word in words if word in text], path


def test_a_supernode_killed_in_mid_upload_is_left_out_and_comes_back(home, tmp_path):
    made = shards(home, tmp_path)
    rounds = 8
    setting = config(home, rounds=rounds, timeout_s=70)  # Flower holds a dead node for 60 s
    with Loopback(tmp_path, setting, made) as federation:
        federation.until(lambda: federation.online() == DEVICES, "all online")
        victim, killed = federation.devices[0], threading.Event()

        def kill() -> None:
            # its runner has begun to train: the SuperNode holds the message and no reply yet
            ledger = made[0].with_name(f"{made[0].name}.ledger.jsonl")
            federation.until(
                lambda: ledger.exists() and '"spent"' in ledger.read_text(), "an upload", 120
            )
            federation.kill(victim, "supernode")
            killed.set()

        thread = threading.Thread(target=kill)
        thread.start()
        done = federation.run()
        thread.join()
        assert killed.is_set()
        assert done.exit_code == EXIT_OK
        survivors = [entry["body"]["survivors"] for entry in entries(done.run_dir, "release")]
        assert len(survivors) == rounds
        assert survivors[0] == DEVICES - 1  # and it is let in again after a minute or so
        assert survivors == sorted(survivors)
        assert survivors[-1] == DEVICES
        # what the killed one had spent stays spent, by an upload that never left
        others = [rounds] * (DEVICES - 1)
        assert [spent(shard) for shard in made] == [1 + survivors.count(DEVICES), *others]
        assert "supernode ended with -9" in "\n".join(federation.lines)


def test_a_killed_superlink_and_serverapp_resume_with_nothing_lost_or_doubled(home, tmp_path):
    made = shards(home, tmp_path)
    run_dir = tmp_path / "run"
    # (a runner gives a message that was cut off two minutes, before it takes the next)
    setting = config(home, rounds=3, timeout_s=180)
    with Loopback(tmp_path, setting, made) as federation:
        federation.until(lambda: federation.online() == DEVICES, "all online")

        def kill() -> None:
            ledger = run_dir / "ledger.jsonl"
            federation.until(
                lambda: ledger.exists() and ledger.read_text().count('"kind":"intent"') == 2,
                "the second round's intent",
                180,
            )
            for pid in serverapps(federation.pid(federation.server, "superlink")):
                os.kill(pid, signal.SIGKILL)
            federation.kill(federation.server, "superlink")

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(FailedRunError, match="go on by --resume"):
            federation.run(run_dir=run_dir)
        thread.join()
        before = entries(run_dir, "release")
        assert len(before) == 1
        done = federation.run(resume=run_dir)
        assert done.exit_code == EXIT_OK
        intents, releases = entries(run_dir, "intent"), entries(run_dir, "release")
        assert [entry["body"]["round"] for entry in intents] == [1, 2, 3]
        assert [entry["body"]["round"] for entry in releases] == [1, 3]
        assert releases[0] == before[0]
        assert releases[1]["body"]["model_before"] == releases[0]["body"]["model_after"]
        assert len(entries(run_dir, "resume")) == 1
        result = audit(run_dir, server_key=done.server_fingerprint)
        assert result.ok, [finding for finding in result.findings if not finding.ok]


def serverapps(superlink: int) -> list[int]:
    """The pids of the ServerApps below a SuperLink: children of its SuperExec."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    executors = {row[0] for row in rows if row[1] == str(superlink)}
    return [int(row[0]) for row in rows if row[1] in executors and "flwr-serverapp" in row[2]]


def test_start_stops_its_processes_on_sigterm_and_says_what_it_does(home, tmp_path):
    """The command itself, as start.sh runs it."""
    with Loopback(tmp_path, config(home), shards(home, tmp_path, 1), is_started=False) as made:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedattn.flower.deployment", str(made.server)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(3)]
            assert "superlink started, pid" in said[0]
            assert "front started, pid" in said[1]
            assert "device-1: registered as node" in said[2]
            pids = json.loads((made.server / "pids.json").read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            for pid in pids.values():
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)
            assert not (made.server / "pids.json").exists()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
