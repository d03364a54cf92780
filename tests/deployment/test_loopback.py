"""The real deployment on 127.0.0.1: rounds, kills, and who gets in. Slow: dozens of processes."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedattn.audit import audit
from fedattn.errors import EXIT_OK
from fedattn.flower.deployment.folders import open_server
from fedattn.flower.deployment.submit import FailedRunError
from tests.deployment.loopback import Loopback, free_port
from tests.deployment.proxy import RecordingProxy
from tests.federation import conversations, tiny, write

pytestmark = pytest.mark.slow
DEVICES = 4
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Four shards of conversations, and other ones for the server to measure on."""
    folder = tmp_path_factory.mktemp("loopback")
    items = conversations(60)
    for number in range(DEVICES):
        write(folder / f"shard-{number}.jsonl", items[number::DEVICES])
    write(folder / "public.jsonl", conversations(40, 1))
    return folder


def config(home: Path, *, rounds: int = 1, timeout_s: float = 60.0):
    return tiny(
        home / "public.jsonl",
        train={"rounds": rounds},
        secagg={"threshold": 3, "max_colluding": 1, "stage_timeout_s": timeout_s},
    )


def shards(home: Path, tmp_path: Path, count: int = DEVICES) -> list[Path]:
    """Copies: a ledger lies beside each, and a test's spend is its own."""
    made = []
    for number in range(count):
        path = tmp_path / f"shard-{number}.jsonl"
        path.write_bytes((home / f"shard-{number}.jsonl").read_bytes())
        made.append(path)
    return made


def entries(run_dir: Path, kind: str) -> list[dict]:
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def spent(shard: Path) -> int:
    """How many rounds a device's ledger says were spent on its data."""
    path = shard.with_name(f"{shard.name}.ledger.jsonl")
    return sum('"spent"' in line for line in path.read_text().splitlines())


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
    words = {turn["text"] for line in made[0].open() for turn in json.loads(line)["turns"]}
    logs = list(tmp_path.rglob("*.log"))
    assert len(logs) >= 2 + 2 * DEVICES
    for path in logs:
        text = path.read_text()
        assert not [word for word in words if word in text], path


def test_a_supernode_killed_in_mid_upload_is_left_out_and_comes_back(home, tmp_path):
    made = shards(home, tmp_path)
    setting = config(home, rounds=2, timeout_s=25)
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
        released = entries(done.run_dir, "release")
        assert [entry["body"]["survivors"] for entry in released] == [DEVICES - 1, DEVICES]
        # what the killed one had spent stays spent: two uploads were begun on its data
        assert [spent(shard) for shard in made] == [2] * DEVICES
        assert "supernode ended with -9" in "\n".join(federation.lines)


def test_a_killed_superlink_and_serverapp_resume_with_nothing_lost_or_doubled(home, tmp_path):
    made = shards(home, tmp_path)
    run_dir = tmp_path / "run"
    with Loopback(tmp_path, config(home, rounds=3), made) as federation:
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


@pytest.fixture(scope="module")
def running(home, tmp_path_factory) -> Iterator[Loopback]:
    """A federation whose first three devices are enough; the fourth is everybody's stranger."""
    folder = tmp_path_factory.mktemp("who")
    made = shards(home, folder)
    with Loopback(folder, config(home), made[:3], is_started=False) as federation:
        federation.stranger = federation.add("stranger", made[3], is_admitted=False)  # type: ignore[attr-defined]
        for each in (federation.server, *federation.devices):
            federation.start(each)
        federation.until(lambda: federation.online() == 3, "three online")
        yield federation


def try_to_connect(device: Path, seconds: float = 60) -> tuple[int, str]:
    """Exit code and output of the device's SuperNode, which must not get in."""
    done = subprocess.run(
        [sys.executable, "-m", "fedattn.flower.deployment", str(device), "supernode"],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


def still_runs(federation: Loopback) -> None:
    assert federation.run().report.totals.rounds_released == 1


def test_an_unknown_node_key_is_refused(running):
    code, said = try_to_connect(running.stranger)
    assert code != 0
    assert "Failed to initialize the connection to the SuperLink" in said
    assert running.online() == 3


def test_a_server_of_a_wrong_authority_is_refused_by_the_device(running, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shard = tmp_path / "shard.jsonl"
    shard.write_bytes(running.shards[0].read_bytes())
    with Loopback(other, running.config, [shard], is_started=False) as elsewhere:
        device = elsewhere.devices[0]
        Loopback.set(device / "federation.yaml", port=open_server(running.server).port)
        code, said = try_to_connect(device)
    assert code != 0
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert running.online() == 3


def test_a_certificate_for_another_host_is_refused_by_the_device(running):
    device = running.stranger
    Loopback.set(device / "federation.yaml", host="localhost")
    code, said = try_to_connect(device)
    Loopback.set(device / "federation.yaml", host="127.0.0.1")
    assert code != 0
    assert "certificate is not valid for 'localhost'" in said


def test_plain_http_to_the_front_gets_no_answer(running):
    port = open_server(running.server).port
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        httpx.post(f"http://127.0.0.1:{port}/v1/fleet/pull-messages", content=b"", timeout=10)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/register-node",
        "/v1/control/start-run",
        "/v1/control/stop-run",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-task-input",
        "/v1/runtime/push-task-output",
    ],
)
def test_an_outsiders_calls_through_the_front_reach_nothing(running, path):
    with outsider(running) as client:
        answer = client.post(path, content=b"", headers={"content-type": "application/protobuf"})
    assert (answer.status_code, answer.content) == (404, b"")


def test_an_outsiders_registration_as_a_node_is_refused(running):
    from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

    private, public = generate_key_pairs()
    plain = {"content-type": "application/protobuf"}
    request = RegisterNodeFleetRequest(public_key=public_key_to_bytes(public))
    with outsider(running) as client:
        unsigned = client.post(
            "/v1/fleet/register-node", content=request.SerializeToString(), headers=plain
        )
        signed = client.post(
            "/v1/fleet/register-node",
            content=request.SerializeToString(),
            headers=node_headers(private, public),
        )
    assert unsigned.status_code == 401
    assert "Invalid SuperNode authentication" in unsigned.text
    assert signed.status_code == 412
    assert "All SuperNodes must be registered via the CLI" in signed.text
    assert running.online() == 3


def test_a_supernode_that_claims_another_node_id_is_refused(running):
    """An admitted device signs with its own node key and names another's node."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.node_pb2 import Node

    nodes = json.loads((running.server / "nodes.json").read_text())
    private = load_ssh_private_key((running.devices[0] / "node-key").read_bytes(), None)
    statuses = {}
    with outsider(running) as client:
        for node in nodes:
            answer = client.post(
                "/v1/fleet/pull-messages",
                content=PullMessagesRequest(node=Node(node_id=int(node))).SerializeToString(),
                headers=node_headers(private, private.public_key()),
            )
            statuses[node] = answer.status_code
            if answer.status_code != 200:
                assert "Invalid SuperNode authentication" in answer.text
    assert sorted(statuses.values()) == [200, 401, 401]


def test_the_run_is_unaffected_by_all_of_them(running):
    still_runs(running)


def test_a_supernode_with_anothers_certificate_is_left_out(home, tmp_path):
    """Its node key is admitted; identity and certificate are copied from another device."""
    made = shards(home, tmp_path)
    with Loopback(tmp_path, config(home), made, is_started=False) as federation:
        thief, victim = federation.devices[3], federation.devices[0]
        for name in ("identity.pem", "certificate.pem"):
            (thief / name).write_bytes((victim / name).read_bytes())
        for each in (federation.server, *federation.devices):
            federation.start(each)
        done = federation.run()
        assert done.report.totals.rounds_released == 1
        assert entries(done.run_dir, "release")[0]["body"]["survivors"] == 3


def test_a_revoked_device_is_cut_off_and_a_new_one_let_in_while_the_server_runs(home, tmp_path):
    from datetime import UTC, datetime

    from fedattn.federation.authority import revoke
    from fedattn.federation.server import update_revocations

    made = shards(home, tmp_path)
    with Loopback(tmp_path, config(home), made[:3]) as federation:
        federation.until(lambda: federation.online() == 3, "three online")
        late = federation.add("late", made[3])
        federation.start(late)
        federation.devices.append(late)
        federation.until(lambda: federation.online() == 4, "the late one online")
        revoke(tmp_path / "authority", "device-1", at=datetime.now(UTC))
        update_revocations(
            federation.server, tmp_path / "authority" / "revoked.crl", at=datetime.now(UTC)
        )
        supernode = federation.devices[0]
        federation.until(
            lambda: "supernode ended" in "\n".join(federation.lines), "the revoked one to be ended"
        )
        federation.stop(supernode)
        done = federation.run()
        assert entries(done.run_dir, "release")[0]["body"]["survivors"] == 3
        assert len((done.run_dir / "roster.txt").read_text().splitlines()) == 1 + 3
        code, said = try_to_connect(supernode)
        assert code != 0
        assert "SuperLink" in said


def test_a_proxy_on_the_way_sees_tls_alone(home, tmp_path):
    made = shards(home, tmp_path)
    with Loopback(tmp_path, config(home), made, is_started=False) as federation:
        server = open_server(federation.server)
        with RecordingProxy(free_port(), server.port) as proxy:
            for device in federation.devices:
                Loopback.set(device / "federation.yaml", port=proxy.port)
            for each in (federation.server, *federation.devices):
                federation.start(each)
            done = federation.run()
        assert done.report.totals.rounds_released == 1
    assert proxy.streams
    assert sum(len(stream) for stream in proxy.streams) > 50_000
    for stream in proxy.streams:
        assert_tls(stream)
    seen = b"".join(proxy.streams)
    for word in (b"fedattn", b"/v1/fleet", b"POST", b"query.advertise", b"PK\x03\x04"):
        assert word not in seen


def assert_tls(stream: bytes) -> None:
    """Every byte belongs to a TLS record: a handshake first, then encrypted ones."""
    at, kinds = 0, []
    while at + 5 <= len(stream):
        assert stream[at] in (20, 21, 22, 23), f"byte {at} begins no TLS record"
        assert stream[at + 1] == 3
        kinds.append(stream[at])
        at += 5 + int.from_bytes(stream[at + 3 : at + 5], "big")
    if kinds:
        assert kinds[0] == 22
        assert set(kinds[8:]) <= {21, 23}  # application data, and the alert that ends it


def outsider(federation: Loopback) -> httpx.Client:
    """Somebody who reaches the front and trusts its certificate."""
    trusted = ssl.create_default_context(cafile=str(federation.server / "authority.pem"))
    port = open_server(federation.server).port
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=20)


def node_headers(private, public) -> dict[str, str]:
    """What a SuperNode signs."""
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import (
        FLEET_HTTP_PUBLIC_KEY_HEADER,
        FLEET_HTTP_SIGNATURE_HEADER,
    )
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

    stamp = now().isoformat()
    signature = sign_message(private, stamp.encode())
    return {
        "content-type": "application/protobuf",
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key_to_bytes(public)).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
    }


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
