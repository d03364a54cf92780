"""Start commands: the one place that knows them, and what they must never miss."""

from __future__ import annotations

import ast
import importlib
import inspect
import socket
import ssl
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from fedattn.errors import RunError
from fedattn.flower.deployment import commands
from fedattn.flower.deployment.folders import (
    DeviceFolder,
    ServerFolder,
    choose_runtime_port,
    open_device,
    open_server,
)
from fedattn.flower.deployment.loopback import ensure_loopback_certificate
from fedattn.flower.deployment.processes import names, prepare, write_nginx_conf
from fedattn.flower.supernode import LOOP, poll_every
from tests.ops_files import blocks, parse_nginx

SERVER = ServerFolder(Path("/srv/federation"), "chat.example", 8443, 9092, "the university")
_PATHS = (
    *("pid", "client_body_temp_path", "proxy_temp_path", "fastcgi_temp_path", "uwsgi_temp_path"),
    *("scgi_temp_path", "ssl_certificate", "ssl_certificate_key", "proxy_ssl_trusted_certificate"),
)
DEVICE = DeviceFolder(Path("/var/device"), "chat.example", 8443, "ann", 0.5)


def value(argv: tuple[str, ...], option: str) -> str:
    assert argv.count(option) == 1
    return argv[argv.index(option) + 1]


def test_the_superlink_listens_on_loopback_alone_and_checks_node_keys():
    argv = commands.superlink(SERVER).argv
    assert value(argv, "--host") == "127.0.0.1"
    assert value(argv, "--port") == "9092"
    assert value(argv, "--database") == "/srv/federation/superlink.db"
    assert "--enable-supernode-auth" in argv
    assert "--disable-runtime-dependency-installation" in argv
    assert "--insecure" not in argv


def test_a_supernode_verifies_the_server_and_leaves_the_code_to_the_runner():
    argv = commands.supernode(DEVICE, 12345).argv
    assert value(argv, "--superlink") == "chat.example:8443"
    assert value(argv, "--root-certificates") == "/var/device/authority.pem"
    assert value(argv, "--auth-supernode-private-key") == "/var/device/node-key"
    assert value(argv, "--isolation") == "process"
    assert value(argv, "--host") == "127.0.0.1"
    assert value(argv, "--superexec-auth-secret-file") == "/var/device/superexec-secret"
    assert value(argv, "--node-config") == 'device-dir="/var/device"'
    assert "--insecure" not in argv
    assert "--allow-runtime-dependency-installation" not in argv


@pytest.mark.parametrize(
    "command",
    [
        commands.superlink(SERVER),
        commands.front(replace(SERVER, front="python")),
        commands.supernode(DEVICE, 1),
        commands.runner(DEVICE),
    ],
    ids=lambda command: command.name,
)
def test_no_process_phones_home_or_touches_the_users_flower(command):
    assert command.env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert command.env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    home = Path(command.env["FLWR_HOME"])
    assert home.is_relative_to("/srv/federation") or home.is_relative_to("/var/device")
    assert command.log.name == f"{command.name}.log"


def test_a_command_names_no_secret_itself():
    """Arguments are visible to every user of a machine: secrets go by path."""
    for command in (commands.superlink(SERVER), commands.supernode(DEVICE, 1)):
        for word in command.argv:
            assert len(word) < 200


def test_flower_cannot_take_a_path_with_quotes():
    odd = DeviceFolder(Path('/var/a"b'), "h", 1, "n", 0.5)
    with pytest.raises(RunError, match="cannot take a path with quotes; move the folder"):
        commands.supernode(odd, 1)


def test_a_front_that_is_asked_for_and_missing_is_refused(monkeypatch):
    monkeypatch.setattr(commands, "find_nginx", lambda: None)
    wanted = ServerFolder(Path("/srv"), "h", 1, 2, "", "nginx")
    with pytest.raises(RunError, match="front is nginx, which is not installed; install it"):
        commands.front(wanted)


@pytest.mark.parametrize("listen", ["0.0.0.0", "192.0.2.7", "::", "10.127.0.1"])
def test_fedattns_own_front_is_for_the_world_only_if_it_was_chosen(monkeypatch, listen):
    """It sheds no idle connection: a thousand of them, and no device gets through."""
    monkeypatch.setattr(commands, "find_nginx", lambda: None)
    open_to_all = replace(SERVER, listen=listen)
    with pytest.raises(RunError, match=r"install nginx, or say `front: python` in server\.yaml"):
        commands.front(open_to_all)
    chosen = commands.front(replace(open_to_all, front="python"))
    assert "fedattn.flower.front" in chosen.argv


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_without_nginx_fedattns_own_front_serves_loopback(monkeypatch, listen):
    monkeypatch.setattr(commands, "find_nginx", lambda: None)
    assert "fedattn.flower.front" in commands.front(replace(SERVER, listen=listen)).argv


def _words(directives: list[dict]) -> list[str]:
    """Every argument in an nginx.conf."""
    found = []
    for each in directives:
        found += [*each["args"], *_words(each.get("block", []))]
    return found


@pytest.mark.parametrize("name", ["server", "a server's own folder"])
def test_nginx_keeps_every_path_in_the_servers_folder(tmp_path, name):
    folder = ServerFolder(tmp_path / name, "h", 8443, 9092, "")
    folder.path.mkdir()
    write_nginx_conf(folder)
    parsed = parse_nginx(folder.path / "front" / "nginx.conf")
    paths = [word for each in blocks(parsed, *_PATHS) for word in each["args"]]
    assert len(paths) == 9
    assert all(path.startswith(f"{folder.path}/") for path in paths)
    assert not list(blocks(parsed, "user"))
    places = [each["args"][-1] for each in blocks(parsed, "location")]
    absolute = [word for word in _words(parsed) if word.startswith("/")]
    assert set(absolute) - set(places) == set(paths)


@pytest.mark.skipif(commands.find_nginx() is None, reason="no nginx is installed")
def test_nginx_takes_a_folder_with_a_space(tmp_path):
    folder = ServerFolder(tmp_path / "a server's own folder", "h", 8443, 9092, "")
    folder.path.mkdir()
    ensure_loopback_certificate(folder.path)
    for name, kind in (("tls.pem", "loopback.pem"), ("tls-key.pem", "loopback-key.pem")):
        (folder.path / name).write_bytes((folder.path / kind).read_bytes())
    argv = prepare(folder, "front").argv
    done = subprocess.run([*argv, "-t", "-q"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("odd", ['"', ";", "{", "}", "$", "\n", "\\"])
def test_a_path_that_nginx_would_read_as_something_else_is_refused(tmp_path, odd):
    folder = ServerFolder(tmp_path / f"a{odd}b", "h", 8443, 9092, "")
    folder.path.mkdir()
    with pytest.raises(RunError, match=r"nginx cannot take a path with .*; move the folder, or"):
        write_nginx_conf(folder)
    assert not (folder.path / "front").exists()


def test_only_what_a_folder_has_can_be_started(tmp_path):
    assert names(SERVER) == ("superlink", "front")
    assert names(DEVICE) == ("supernode", "runner")
    with pytest.raises(RunError, match=r"--only runner: .* has superlink and front"):
        prepare(ServerFolder(tmp_path, "h", 1, 2, ""), "runner")


def test_the_runtime_port_is_kept_while_it_is_free_and_left_when_it_is_not(tmp_path):
    first = choose_runtime_port(tmp_path)
    assert choose_runtime_port(tmp_path) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert choose_runtime_port(tmp_path) != first
    assert (tmp_path / "runtime-port").read_text() != str(first)


def test_processes_that_start_at_once_agree_on_one_loopback_certificate(tmp_path):
    code = (
        "import sys; from pathlib import Path; "
        "from fedattn.flower.deployment.loopback import ensure_loopback_certificate as ensure; "
        "sys.stdin.read(); ensure(Path(sys.argv[1]))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        process.stdin.close()  # all go
    assert [process.wait(60) for process in started] == [0, 0, 0]
    ssl.create_default_context().load_cert_chain(
        tmp_path / "loopback.pem", tmp_path / "loopback-key.pem"
    )  # (refuses a key that is not the certificate's)


def test_the_loopback_certificate_is_for_127_0_0_1_alone_and_kept(tmp_path):
    ensure_loopback_certificate(tmp_path)
    pem = (tmp_path / "loopback.pem").read_bytes()
    names_ = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(each) for each in names_.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert stat.S_IMODE((tmp_path / "loopback-key.pem").stat().st_mode) == 0o600
    ensure_loopback_certificate(tmp_path)
    assert (tmp_path / "loopback.pem").read_bytes() == pem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host: h\nport: 1\n", "lacks superlink_port"),
        ("- a\n", "lacks host, port, superlink_port"),
        ("host: h\nport: 1\nsuperlink_port: 2\nfront: apache\n", "use auto, nginx or python"),
        ("{", "is not YAML"),
    ],
)
def test_a_server_yaml_that_is_wrong_is_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "server.yaml").write_text(text)
    with pytest.raises(RunError, match=message):
        open_server(tmp_path)


def test_a_poll_interval_out_of_bounds_is_refused(tmp_path):
    (tmp_path / "federation.yaml").write_text("host: h\nport: 1\npoll_s: 0\n")
    with pytest.raises(RunError, match=r"poll_s is 0; must be 0\.05\.\.60"):
        open_device(tmp_path)


def test_flowers_loop_sleeps_by_nothing_but_what_poll_every_shortens(monkeypatch):
    """The patch is of one name in one module of the pinned Flower: here is what it rests on."""
    loop = importlib.import_module(LOOP)
    uses = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(loop)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    ]
    assert len(uses) == 3
    assert {use.attr for use in uses} == {"sleep"}
    slept: list[float] = []
    monkeypatch.setattr(loop, "time", loop.time)  # put back afterwards
    monkeypatch.setattr("fedattn.flower.supernode.time.sleep", slept.append)
    poll_every(0.25)
    loop.time.sleep(3)
    loop.time.sleep(0.1)
    assert slept == [0.25, 0.1]
