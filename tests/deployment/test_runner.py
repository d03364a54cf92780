"""The resident runner before a real Runtime API: whose code runs, and what leaves."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from flwr.app import ConfigRecord, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.supercore.constant import TaskType

from fedattn.errors import RunError
from fedattn.flower import wire
from fedattn.flower.bundle import build_bundle, bundle_sha256
from fedattn.flower.runner import Runner
from fedattn.policy import OwnData, Policy
from tests.deployment.loopback import free_port
from tests.deployment.node import Node
from tests.federation import conversations, tiny, write

ROOT = Path(__file__).parent.parent.parent
SECRET_WORDS = "a-word-of-the-conversation"


def device(tmp_path: Path, *hashes: str) -> Path:
    """A device's folder with a policy that allows the bundles `hashes`."""
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "superexec-secret").write_bytes(os.urandom(32))
    data = write(tmp_path / "shard.jsonl", conversations(6))
    policy = Policy.agreed(tiny(data), data=OwnData(path=str(data)))
    allowed = policy.model_copy(update={"app_hashes": list(hashes)})
    (folder / "policy.yaml").write_text(yaml.safe_dump(allowed.model_dump(mode="json")))
    return folder


def serving(folder: Path) -> Iterator[Runner]:
    runner = Runner(folder)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield runner
    finally:
        runner.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def folder(tmp_path) -> Path:
    return device(tmp_path, bundle_sha256())


@pytest.fixture
def node(folder) -> Iterator[Node]:
    with Node(folder, free_port()) as made:
        yield made


@pytest.fixture
def runner(folder, node) -> Iterator[Runner]:
    yield from serving(folder)


def malicious(proof: Path) -> bytes:
    """A bundle that writes a file when it is imported, wherever an import could begin."""
    code = f"open({str(proof)!r}, 'w').write('ran')\n".encode()
    pyproject = (ROOT / "fedattn/assets/app/pyproject.toml").read_bytes()
    names = ("clients/__init__.py", "clients/app.py", "server/__init__.py", "server/app.py")
    more = dict.fromkeys((*names, "sitecustomize.py", "fedattn/__init__.py"), code)
    return build_fab_from_files({"pyproject.toml": pyproject, **more})[0]


def test_the_installed_client_app_answers_for_a_bundle_that_the_policy_lists(node, runner, folder):
    node.ask(wire.ENROLL, wire.pack(), build_bundle(), **{"device-dir": str(folder)})
    # (this device joined no federation: the reply is the installed app's own refusal)
    assert wire.refusal(node.reply()) == "certificate"


def test_a_bundle_that_the_policy_does_not_list_is_refused_before_its_code_runs(
    node, runner, folder, tmp_path, caplog, monkeypatch
):
    proof, home = tmp_path / "proof", tmp_path / "flwr-home"
    monkeypatch.setenv("FLWR_HOME", str(home))
    with caplog.at_level(logging.INFO, "fedattn.runner"):
        node.ask(wire.ENROLL, wire.pack(), malicious(proof), **{"device-dir": str(folder)})
        reply = node.reply()
    assert not reply.has_error()
    assert wire.refusal(reply) == "app_hash"
    assert list(reply.content) == ["fedattn"]
    assert list(reply.content["fedattn"]) == ["refusal"]
    assert not proof.exists()
    assert not home.exists()  # nothing was installed either
    assert "is not in app_hashes of policy.yaml: refused" in caplog.text


def test_the_hash_is_of_the_bytes_not_the_one_that_the_server_claims(
    node, runner, folder, tmp_path
):
    proof = tmp_path / "proof"
    node.ask(
        wire.ENROLL, wire.pack(), malicious(proof), claimed=bundle_sha256(),
        **{"device-dir": str(folder)}
    )  # fmt: skip
    assert wire.refusal(node.reply()) == "app_hash"
    assert not proof.exists()


def test_the_malicious_bundle_would_write_its_file_if_it_ran(tmp_path):
    """What the two tests above rest on."""
    import io
    import zipfile

    proof = tmp_path / "proof"
    zipfile.ZipFile(io.BytesIO(malicious(proof))).extractall(tmp_path / "app")
    subprocess.run(
        [sys.executable, "-c", "import clients.app"], cwd=tmp_path / "app", check=True, timeout=60
    )
    assert proof.read_text() == "ran"


def test_a_policy_that_cannot_be_read_refuses_everything(node, runner, folder):
    (folder / "policy.yaml").write_text("app_hashes: 7\n")
    node.ask(wire.ENROLL, wire.pack(), build_bundle(), **{"device-dir": str(folder)})
    assert wire.refusal(node.reply()) == "policy"


def test_a_policy_that_lists_no_bundle_runs_nothing(tmp_path):
    folder = device(tmp_path)
    with Node(folder, free_port()) as node:
        for _ in serving(folder):
            node.ask(wire.ENROLL, wire.pack(), build_bundle(), **{"device-dir": str(folder)})
            assert wire.refusal(node.reply()) == "app_hash"


def test_a_policy_that_is_edited_holds_from_the_next_message_on(node, runner, folder):
    config = {"device-dir": str(folder)}
    path = folder / "policy.yaml"
    node.ask(wire.ENROLL, wire.pack(), build_bundle(), **config)
    assert wire.refusal(node.reply()) == "certificate"
    path.write_text(path.read_text().replace(bundle_sha256(), "ab" * 32))
    node.ask(wire.ENROLL, wire.pack(), build_bundle(), **config)
    assert wire.refusal(node.reply()) == "app_hash"


@pytest.mark.parametrize(
    "kind", ["query.unheard_of", "train.evil", "evaluate", "query", "train", "system"]
)
def test_a_message_of_an_unknown_kind_is_a_refusal_without_a_text(node, runner, folder, kind):
    content = RecordDict({"fedattn": ConfigRecord({"note": SECRET_WORDS})})
    node.ask(kind, content, build_bundle(), **{"device-dir": str(folder)})
    reply = node.reply()
    assert not reply.has_error()
    assert wire.refusal(reply) == "internal"


def test_an_exception_of_the_app_never_leaves_as_text(node, runner, folder, monkeypatch, caplog):
    import fedattn.flower.client_app as client_app

    def fail(**_: object) -> None:
        raise ValueError(SECRET_WORDS)

    monkeypatch.setattr(client_app, "app", fail)
    with caplog.at_level(logging.INFO):
        task = node.ask(wire.ENROLL, wire.pack(), build_bundle(), **{"device-dir": str(folder)})
        reply = node.reply()
    assert not reply.has_error()
    assert wire.refusal(reply) == "internal"
    assert SECRET_WORDS not in caplog.text
    assert "internal error of kind ValueError" in caplog.text
    _wait(lambda: node.state.get_tasks(task_ids=[task])[0].status.status == "finished")
    assert SECRET_WORDS not in str(node.state.get_tasks(task_ids=[task])[0])


def test_other_kinds_of_tasks_are_left_alone(node, runner, folder):
    task = node.ask(wire.ENROLL, wire.pack(), build_bundle(), task_type=TaskType.AGENT_APP)
    time.sleep(1)
    assert node.state.get_tasks(task_ids=[task])[0].status.status == "pending"


def test_a_runner_without_the_secret_gets_no_task(node, folder):
    (folder / "superexec-secret").write_bytes(bytes(32))
    for _ in serving(folder):
        task = node.ask(wire.ENROLL, wire.pack(), build_bundle(), **{"device-dir": str(folder)})
        time.sleep(1)
        assert node.state.get_tasks(task_ids=[task])[0].status.status == "pending"


def test_a_runner_outlives_its_supernode(folder):
    config = {"device-dir": str(folder)}
    for _ in serving(folder):
        for _ in range(2):  # a restarted SuperNode may be on another port
            with Node(folder, free_port()) as node:
                node.ask(wire.ENROLL, wire.pack(), build_bundle(), **config)
                assert wire.refusal(node.reply()) == "certificate"


def test_a_second_runner_of_one_device_is_refused(runner, folder):
    time.sleep(0.2)
    with pytest.raises(RunError, match="another runner serves this device; stop it first"):
        Runner(folder).run()


def test_sigterm_ends_the_process_cleanly(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "fedattn.flower.runner", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "stopped" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _wait(holds, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
