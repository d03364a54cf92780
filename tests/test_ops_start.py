"""Every start command in the files that deploy is one that fedattn knows; the front's file."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from fedattn.federation.folders import template
from fedattn.federation.server import found_with_server
from fedattn.flower.deployment.commands import find_nginx
from fedattn.flower.deployment.folders import ServerFolder
from fedattn.flower.deployment.loopback import CERTIFICATE, KEY, ensure_loopback_certificate
from fedattn.flower.deployment.processes import write_nginx_conf
from tests.ops_files import (
    DOCKERFILES,
    NAMES,
    ROOT,
    UNITS,
    blocks,
    instructions,
    load_compose,
    parse_nginx,
    parsed,
    unit,
)

NGINX = {
    "ssl_protocols": "TLSv1.2 TLSv1.3",
    "ssl_session_tickets": "off",
    "server_tokens": "off",
    "access_log": "off",
    "limit_conn_zone": "$binary_remote_addr zone=address:4m",
    "limit_conn": "address 64",
    "client_header_timeout": "20s",
    "client_body_timeout": "60s",
    "proxy_read_timeout": "60s",
    "proxy_pass": "https://superlink",
    "proxy_ssl_verify": "on",
}


# the front's nginx.conf


@pytest.fixture
def nginx_conf(tmp_path) -> Path:
    """The file that `fedattn federation start` writes, and the certificates that it names."""
    folder = ServerFolder(tmp_path, "localhost", 8443, 9092, "server")
    ensure_loopback_certificate(tmp_path)
    for name, made in (("tls.pem", CERTIFICATE), ("tls-key.pem", KEY)):
        shutil.copy(tmp_path / made, tmp_path / name)
    return write_nginx_conf(folder)


def test_the_front_passes_on_fleet_calls_and_nothing_else(nginx_conf):
    parsed = parse_nginx(nginx_conf)
    assert {each["directive"]: " ".join(each["args"]) for each in blocks(parsed, *NGINX)} == NGINX
    places = list(blocks(parsed, "location"))
    passing = [each for each in places if list(blocks(each["block"], "proxy_pass"))]
    large = "/v1/fleet/push-object"
    assert [each["args"] for each in passing] == [["~", "^/v1/fleet/[a-z-]+$"], ["=", large]]
    sizes = [each["args"] for each in blocks(parsed, "client_max_body_size")]
    assert sizes == [["1m"], ["512m"]]
    assert [each["args"] for each in blocks(passing[1]["block"], "client_max_body_size")] == [
        ["512m"]
    ]
    [upstream] = blocks(parsed, "upstream")
    assert [each["args"] for each in blocks(upstream["block"], "server")] == [["127.0.0.1:9092"]]
    [only] = [each for each in blocks(parsed, "server") if "block" in each]
    assert [each["args"][-1] for each in blocks(only["block"], "listen")] == ["ssl"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("server_tokens off;", "server_tokenz off;", "server_tokenz"),
        ("server_tokens off;", "server_tokens;", "server_tokens"),
        ("keepalive 32;\n    }", "keepalive 32;\n", "not terminated"),
    ],
)
def test_the_parser_notices_a_broken_nginx_conf(nginx_conf, old, new, says):
    text = nginx_conf.read_text()
    assert old in text
    nginx_conf.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=says):
        parse_nginx(nginx_conf)


@pytest.mark.skipif(not find_nginx(), reason="no nginx here")
def test_nginx_itself_takes_the_file(nginx_conf):
    done = subprocess.run(
        [find_nginx(), "-t", "-q", "-p", nginx_conf.parent, "-c", nginx_conf, "-e", "stderr"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


# start commands


def starts() -> Iterator[tuple[str, list[str]]]:
    """Every start command in the files, after `fedattn`; the process it is for ("": all)."""
    for path in UNITS:
        [line] = unit(path.read_text())["Service"]["ExecStart"]
        program, *rest = line.split()
        assert program == "/opt/fedattn/bin/fedattn"
        yield path.stem.removeprefix("fedattn-"), rest
    for side, names in NAMES.items():
        services = load_compose((ROOT / side / "compose.yaml").read_text())["services"]
        for name in names:
            program, *rest = services[name]["command"]
            assert program == "fedattn"
            yield name, rest
    for path in DOCKERFILES:
        program, *rest = json.loads(dict(instructions(path.read_text()))["CMD"])
        assert program == "fedattn"
        yield "", rest
    [line] = re.findall(r"^exec (.*)$", template("start.sh").decode(), flags=re.MULTILINE)
    program, *rest = shlex.split(line.replace('$(dirname "$0")', "/srv/fedattn"))
    assert program == "fedattn"
    yield "", rest


def test_every_start_command_is_one_that_fedattn_knows():
    found = list(starts())
    for name, argv in found:
        path, arguments = parsed(argv)
        assert path == ["federation", "start"]
        assert arguments == {"folder": "/srv/fedattn", "only": name or None}
    # each side's processes have a unit and a service each; four images and start.sh start them all
    every = [name for names in NAMES.values() for name in names]
    assert sorted(name for name, _ in found) == sorted([*every, *every, *[""] * 5])


@pytest.mark.parametrize(
    "argv",
    [
        ["federation", "start"],
        ["federation", "start", "/srv/fedattn", "--just", "front"],
        ["federation", "begin", "/srv/fedattn"],
    ],
)
def test_an_unknown_start_command_would_be_noticed(argv):
    with pytest.raises(click.UsageError):
        parsed(argv)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("name", NAMES["server"])
def test_a_units_own_command_becomes_its_process_and_ends_on_sigterm(tmp_path, name):
    ports = {"front": free_port(), "superlink": free_port()}
    folder = found_with_server(
        tmp_path, "127.0.0.1", name="ops", port=ports["front"], valid_days=30,
        superlink_port=ports["superlink"], at=datetime.now(UTC),
    )  # fmt: skip
    argv = next(argv for each, argv in starts() if each == name)
    program = Path(sys.executable).with_name("fedattn")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *(str(folder) if word == "/srv/fedattn" else word for word in argv)],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            deadline = time.monotonic() + 60
            while not answers(ports[name]):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)
            # the command has become that process: nothing stands between it and the signal
            assert "federation start" not in Path(f"/proc/{process.pid}/cmdline").read_text()
            process.terminate()
            # (uvicorn shuts down, then ends by the signal; systemd counts both as clean)
            assert process.wait(30) in (0, -signal.SIGTERM)
            assert not answers(ports[name])
        finally:
            process.kill()
            process.wait()
