"""Who reaches a federation on 127.0.0.1, and who does not. Slow: real processes."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedattn.flower.deployment.folders import open_server
from tests.deployment.loopback import Loopback, free_port
from tests.deployment.proxy import RecordingProxy
from tests.deployment.shards import ROOT, config, entries, shards

pytestmark = pytest.mark.slow


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
