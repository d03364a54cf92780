"""The TLS front: `/v1/fleet/` and nothing else, whichever front it is."""

from __future__ import annotations

import http.client
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from flwr.app import Metadata
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedattn.flower.deployment import commands
from fedattn.flower.deployment.folders import MAX_BODY_MB, MAX_OBJECT_MB, ServerFolder
from fedattn.flower.deployment.loopback import CERTIFICATE, KEY, ensure_loopback_certificate
from fedattn.flower.deployment.processes import prepare
from fedattn.flower.wire import pack, pack_model
from tests.deployment.loopback import free_port

FRONTS = [
    "python",
    pytest.param(
        "nginx",
        marks=pytest.mark.skipif(commands.find_nginx() is None, reason="no nginx is installed"),
    ),
]


class Seen(BaseHTTPRequestHandler):
    """Stands where the SuperLink is, and remembers what reaches it."""

    requests: list[tuple[str, str, int]]
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self._chunks() if "chunked" in self.headers.get("transfer-encoding", "") else None
        body = body if body is not None else self.rfile.read(length)
        self.requests.append((self.command, self.path, len(body)))
        answer = b"a fleet's answer"
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.send_header("connection", "close")  # or it would answer after it went away
        self.end_headers()
        self.wfile.write(answer)

    def __getattr__(self, name: str) -> object:  # do_GET and its like
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass


class Served:
    """A front before a server that remembers."""

    def __init__(
        self,
        folder: ServerFolder,
        requests: list[tuple[str, str, int]],
        server: ThreadingHTTPServer,
        process: subprocess.Popen[bytes],
    ) -> None:
        self.folder, self.requests = folder, requests
        self.server, self.process = server, process
        self.trusted = ssl.create_default_context(cafile=str(folder.path / CERTIFICATE))

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of one request."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.folder.port, context=self.trusted, timeout=20
        )
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def begin(self, path: str) -> ssl.SSLSocket:
        """A request whose body never comes."""
        plain = socket.create_connection(("127.0.0.1", self.folder.port), timeout=20)
        secure = self.trusted.wrap_socket(plain, server_hostname="127.0.0.1")
        secure.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n".encode())
        return secure


@pytest.fixture
def served(running) -> Served:
    """The front that runs, before a server that has seen nothing yet."""
    running.requests.clear()
    return running


@pytest.fixture(scope="module", params=FRONTS)
def running(request, tmp_path_factory) -> Iterator[Served]:
    with serve(request.param, tmp_path_factory.mktemp("front")) as served:
        yield served


@contextmanager
def serve(kind: str, tmp_path: Path) -> Iterator[Served]:
    """The front `kind` on loopback, from a folder in `tmp_path`."""
    folder = ServerFolder(tmp_path, "127.0.0.1", free_port(), free_port(), "", kind, "127.0.0.1")
    ensure_loopback_certificate(tmp_path)
    for name, made in (("tls.pem", CERTIFICATE), ("tls-key.pem", KEY)):
        (tmp_path / name).write_bytes((tmp_path / made).read_bytes())
    (tmp_path / "server.yaml").write_text(
        f"host: 127.0.0.1\nport: {folder.port}\nsuperlink_port: {folder.superlink_port}\n"
        f"front: {kind}\n"
    )
    seen = type("SeenHere", (Seen,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", folder.superlink_port), seen)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / CERTIFICATE, tmp_path / KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # bodies are cut off here
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    command = prepare(folder, "front")
    with command.log.open("wb") as log:
        process = subprocess.Popen(command.argv, env=dict(command.env), stdout=log, stderr=log)
    try:
        _wait_for(folder.port, process, command.log)
        yield Served(folder, seen.requests, server, process)
    finally:
        process.terminate()
        process.wait(20)
        server.shutdown()
        thread.join()
        server.server_close()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


def test_a_fleet_message_passes_both_ways(served):
    assert served.ask("POST", "/v1/fleet/pull-messages", b"x" * 1000) == (200, b"a fleet's answer")
    assert served.requests == [("POST", "/v1/fleet/pull-messages", 1000)]


def test_a_large_body_streams_through(served):
    body = bytes(20 << 20)
    assert served.ask("POST", "/v1/fleet/push-object", body)[0] == 200
    assert served.requests == [("POST", "/v1/fleet/push-object", len(body))]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/stop-run"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/control/list-runs"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/runtime/pull-task-input"),
        ("POST", "/v1/runtime/push-messages"),
        ("POST", "/v1/responses"),
        ("GET", "/health"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/v1/fleet/pull-messages"),
        ("PUT", "/v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/..%2fcontrol/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/control/../fleet/pull-messages"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1//fleet/pull-messages"),
        ("POST", "/V1/FLEET/pull-messages"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "/v1/fleet/pull-messages?x=1"),
        ("POST", "/v1/fleet/pull-messages;/v1/control/start-run"),
    ],
)
def test_everything_else_is_an_empty_404_that_reaches_nobody(served, method, path):
    assert served.ask(method, path, b"" if method == "POST" else None) == (404, b"")
    assert served.requests == []


@pytest.mark.parametrize(
    ("path", "megabytes"),
    [
        ("/v1/fleet/push-object", MAX_OBJECT_MB),
        ("/v1/fleet/push-messages", MAX_BODY_MB),
        ("/v1/fleet/pull-messages", MAX_BODY_MB),
        ("/v1/fleet/push-objects", MAX_BODY_MB),
        ("/v1/fleet/anything-new", MAX_BODY_MB),
    ],
)
def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(served, path, megabytes):
    headers = {"content-length": str((megabytes << 20) + 1)}
    assert served.ask("POST", path, b"", headers)[0] == 413
    assert served.requests == []


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(served):
    """Whoever sends it by chunks gets no whole one into the SuperLink's memory."""
    pieces = iter([bytes(1 << 18)] * 8)  # 2 MB, the length not said
    try:
        status = served.ask("POST", "/v1/fleet/push-messages", pieces)[0]
    except ConnectionError:  # told 413, and then the pipe was closed on the rest
        status = 413
    assert status == 413
    assert not [size for _, _, size in served.requests if size > MAX_BODY_MB << 20]


def test_a_reply_of_a_thousand_members_is_far_below_the_limit_of_push_messages():
    """What goes there is hashes of parts: their number grows with the model's size alone."""
    shares = {f"member-{n}": secrets.token_bytes(1000) for n in range(1000)}
    vector = torch.zeros(30_000_000)  # 120 MB
    reply = make_message(
        Metadata(1, "f" * 64, 2, 1, "e" * 64, "", 1.0, 3600.0, "train"),
        pack(model=pack_model(vector), **shares),
    )
    asked = PushMessagesRequest(
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[get_object_tree(reply)],
    )
    assert 0 < asked.ByteSize() < 16_000 < MAX_BODY_MB << 20
    parts = [len(part.deflate()) for part in get_all_nested_objects(reply).values()]
    assert 1_000_000 < max(parts) < MAX_OBJECT_MB << 20


def test_one_address_has_so_many_requests_under_way_and_no_more(served):
    if served.folder.front == "python":
        pytest.skip("fedattn's own front counts all connections together")
    under_way = [served.begin("/v1/fleet/push-object") for _ in range(64)]
    try:
        deadline = time.monotonic() + 20
        while served.ask("POST", "/v1/fleet/pull-messages", b"x")[0] != 503:  # as they arrive
            assert time.monotonic() < deadline
    finally:
        for each in under_way:
            each.close()
    deadline = time.monotonic() + 20
    while served.ask("POST", "/v1/fleet/pull-messages", b"x")[0] != 200:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("kind", FRONTS)
def test_whoever_keeps_a_request_open_does_not_keep_the_front_from_stopping(kind, tmp_path):
    with serve(kind, tmp_path) as served:
        under_way = served.begin("/v1/fleet/push-object")
        assert served.ask("POST", "/v1/fleet/pull-messages", b"x")[0] == 200  # it arrived
        served.process.terminate()
        served.process.wait(12)
        under_way.close()


def test_plain_http_gets_no_word_of_an_answer(served):
    with socket.create_connection(("127.0.0.1", served.folder.port), timeout=10) as plain:
        plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n\r\n")
        try:
            answer = plain.recv(1000)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"HTTP")
    assert served.requests == []


def test_old_tls_is_refused(served):
    old = ssl.create_default_context(cafile=str(served.folder.path / CERTIFICATE))
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", served.folder.port), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_superlink_that_is_away_is_a_bad_gateway(served):
    """502, 503 and 504 are what a SuperNode retries; any other status would end it."""
    served.server.shutdown()
    served.server.server_close()
    assert served.ask("POST", "/v1/fleet/pull-messages", b"x")[0] in (502, 504)
