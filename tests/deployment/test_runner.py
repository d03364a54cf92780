"""The resident runner before a real Runtime API: whose code runs, and what leaves."""

from __future__ import annotations

import copy
import inspect
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
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.supercore.constant import TaskType
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp

from fedattn.errors import RunError
from fedattn.flower import wire
from fedattn.flower.bundle import build_bundle, bundle_sha256
from fedattn.flower.grid import EmbeddedGrid
from fedattn.flower.runner import Runner
from fedattn.policy import OwnData, Policy
from tests.attacks.fleet import STAGES, Fleet, Play
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


class Served:
    """Four devices whose messages are answered by a runner each, as between two pushes."""

    def __init__(self, folder: Path) -> None:
        self.fleet, self.bundle = Fleet(folder, train={"rounds": 8}), build_bundle()
        self.allow(bundle_sha256())
        self.runners = {node: Runner(folder) for node in self.fleet.nodes}
        self.fleet.grid = EmbeddedGrid(self, self.fleet.nodes)  # type: ignore[arg-type]

    def __call__(self, message: Message, context: Context) -> Message:
        return self.runners[context.node_id].answer(message, context, self.bundle)

    def allow(self, *hashes: str) -> None:
        policy = self.fleet.policy.model_copy(update={"app_hashes": list(hashes)})
        policy.save(self.fleet.folder / "policy.yaml")

    def restart(self, i: int) -> None:
        self.runners[100 + i] = Runner(self.fleet.folder)

    def whole_round(self, round_: int) -> None:
        play = Play(self.fleet, self.fleet.instruction(round_))
        for stage in STAGES:
            play.stage(stage)


@pytest.fixture
def served(tmp_path) -> Served:
    return Served(tmp_path)


OTHERS = (2, 3, 4)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_is_answered_once_even_if_the_supernode_never_got_the_state_after_it(served, stage):
    """The reply leaves first: if what follows it is lost, the older state must not answer again."""
    fleet = served.fleet
    play = Play(fleet, fleet.instruction(1)).until(stage)
    before, fields = copy.deepcopy(fleet.grid._contexts[101]), play.fields(stage, 1)
    reply = fleet.say(1, stage, **fields)
    assert isinstance(reply, bytes)
    fleet.grid._contexts[101] = before
    assert fleet.holds_round(1)
    assert fleet.say(1, stage, **fields) == "stage"
    assert not fleet.holds_round(1)
    play.take(stage, 1, reply)
    play.stage(stage, OTHERS)
    for later in STAGES[STAGES.index(stage) + 1 :]:
        play.stage(later, OTHERS)  # the round goes on without it
    served.whole_round(2)  # and the next one with it


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_runner_that_restarts_leaves_the_open_round_and_takes_part_in_the_next(served, stage):
    fleet = served.fleet
    play = Play(fleet, fleet.instruction(1)).until(stage)
    served.restart(1)
    assert fleet.say(1, stage, **play.fields(stage, 1)) == "stage"
    for later in STAGES[STAGES.index(stage) :]:
        play.stage(later, OTHERS)
    served.whole_round(2)
    served.restart(1)
    served.whole_round(3)


def test_a_message_refused_before_the_app_ends_the_open_round(served):
    fleet = served.fleet
    play = Play(fleet, fleet.instruction(1)).until("confirm")
    served.allow("ab" * 32)
    assert fleet.say(1, "confirm", **play.fields("confirm", 1)) == "app_hash"
    served.allow(bundle_sha256())
    assert fleet.say(1, "confirm", **play.fields("confirm", 1)) == "stage"


def test_an_open_round_of_one_run_is_not_taken_for_that_of_another(served):
    """Flower keeps one state for a series of runs."""
    fleet = served.fleet
    play = Play(fleet, fleet.instruction(1)).until("confirm")
    before = copy.deepcopy(fleet.grid._contexts[101])
    TaskIdentity.run_id = 2
    try:
        assert fleet.say(1, "confirm", **play.fields("confirm", 1)) == "stage"
    finally:
        TaskIdentity.run_id = 1
    fleet.grid._contexts[101] = before
    play.stage("confirm")


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


def test_a_message_whose_content_never_arrives_does_not_stop_a_runner_for_good():
    """What Flower's pull is called with (checked against the pinned Flower)."""
    pull = run_clientapp.pull_and_inflate_object_from_tree
    assert 0 < pull.keywords["max_time"] <= 300  # seconds
    known = inspect.signature(pull.func).parameters
    assert known["max_time"].default > pull.keywords["max_time"]
    assert "pull_and_inflate_object_from_tree" in run_clientapp.pull_task_input.__code__.co_names
