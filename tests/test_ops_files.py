"""What cannot run in this project's CI, a container engine and systemd, is parsed and linted.

Dockerfiles by hadolint, compose files by compose-spec, units by systemd-analyze where it is, the
front's nginx.conf by crossplane and by nginx where it is. Every start command is one that
`fedattn federation start` knows; `tests/deployment` runs those.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.ops_files import (
    COMPOSE,
    DOCKERFILES,
    NAMES,
    PINS,
    ROOT,
    UNITS,
    hadolint,
    instructions,
    load_compose,
    pins,
    short,
    systemd_says,
    unit,
)

# Dockerfiles


@pytest.mark.parametrize("path", DOCKERFILES, ids=short)
def test_dockerfiles_pass_the_linter(path):
    assert hadolint(path) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FROM python\nCMD ['x']\n", "DL3006"),
        ("FROM python:3.11\nRUN cd /tmp && pip install flwr\n", "DL3013"),
        ("FROM python:3.11\nUSER root\n", "DL3002"),
        ("FROM python:3.11\nENTRYPOINT fedattn federation start\n", "DL3025"),
        ("FROM python:3.11\nRUM true\n", "DL1000"),
    ],
)
def test_the_linter_notices_a_broken_dockerfile(tmp_path, text, code):
    (tmp_path / "Dockerfile").write_text(text)
    assert any(code in line for line in hadolint(tmp_path / "Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=short)
def test_images_run_as_an_ordinary_user_under_an_init_and_send_no_telemetry(path):
    made = instructions(path.read_text())
    last = dict(made[max(n for n, (name, _) in enumerate(made) if name == "FROM") :])
    assert last["USER"] == "10001:10001"
    assert json.loads(last["ENTRYPOINT"]) == ["tini", "--"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert any("FLWR_TELEMETRY_ENABLED=0" in rest for name, rest in made if name == "ENV")
    assert not [rest for name, rest in made if name == "ADD"]
    copied = {word for name, rest in made if name == "COPY" for word in rest.split()[:-1]}
    assert all(
        word.startswith(("--from=", "/opt/"))
        or word in {"LICENSE", "README.md", "pyproject.toml", "fedattn"}
        or "requirements" in word
        for word in copied
    )
    installs = [word for _, rest in made for word in re.findall(r"pip install[^&]*", rest)]
    assert installs
    assert all("--require-hashes" in word or "--no-deps" in word for word in installs)


def test_no_key_shard_or_ledger_can_reach_a_build():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {line for line in rules if line.startswith("!")} == {
        *("!LICENSE", "!README.md", "!pyproject.toml", "!fedattn"),
        *("!clients/requirements.*.txt", "!server/requirements*.txt"),
    }


@pytest.mark.parametrize("path", [*DOCKERFILES, *COMPOSE, *PINS], ids=short)
def test_no_file_names_an_index_or_a_url(path):
    assert not re.search(
        r"https?://|(--|PIP_)(extra[-_])?index[-_]url[ =]\S", path.read_text(), re.I
    )


# versions


@pytest.mark.parametrize("path", [each for each in PINS if "build" not in each.name], ids=short)
def test_every_dependency_is_pinned_to_a_version_that_fedattn_allows(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins(path)
    wanted = [Requirement(text) for text in project["dependencies"]]
    for each in wanted:
        if path.name == "requirements.jetson.txt" and each.name == "torch":
            continue  # the base image's own
        version, _ = pinned[canonicalize_name(each.name)]
        assert each.specifier.contains(version), f"{each} in {short(path)} is {version}"


def test_the_images_agree_on_every_version_they_share():
    versions: dict[str, set[str]] = {}
    for path in PINS:
        for name, (version, _) in pins(path).items():
            versions.setdefault(name, set()).add(version)
    assert {name: each for name, each in versions.items() if len(each) > 1} == {}


# compose files


@pytest.mark.parametrize("path", COMPOSE, ids=short)
def test_compose_files_fit_the_specification(path):
    assert load_compose(path.read_text())["services"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("read_only:", "readonly:"),
        ("restart: unless-stopped", "restart: sometimes"),
        ('"8443:8443"', '"8443:84430"'),
        ("interval: 15s", "interval: fifteen"),
    ],
)
def test_the_parser_notices_a_broken_compose_file(old, new):
    text = (ROOT / "server/compose.yaml").read_text()
    assert old in text
    with pytest.raises(ValueError, match="services"):
        load_compose(text.replace(old, new))


@pytest.mark.parametrize("side", NAMES)
def test_containers_get_as_little_as_they_need(side):
    services = load_compose((ROOT / side / "compose.yaml").read_text())["services"]
    assert set(services) == {"network", *NAMES[side]}
    for name, each in services.items():
        assert each["user"] == "10001:10001"
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]
        assert each["security_opt"] == ["no-new-privileges:true"]
        assert each["restart"] == "unless-stopped"
        assert each["ulimits"] == {"core": 0}
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "env_file"} & set(each)
        if name != "network":
            assert each["network_mode"] == "service:network"
            assert "ports" not in each
    published = services["network"].get("ports", [])
    assert len(published) == (1 if side == "server" else 0)
    assert services["network"]["command"] == ["sleep", "infinity"]
    assert "volumes" not in services["network"]


def test_only_the_runner_sees_the_conversations():
    services = load_compose((ROOT / "clients/compose.yaml").read_text())["services"]
    mounts = {
        name: {volume["target"] for volume in each.get("volumes", [])}
        for name, each in services.items()
    }
    assert mounts == {
        "network": set(),
        "supernode": {"/srv/fedattn"},
        "runner": {"/srv/fedattn", "/data"},
    }


@pytest.mark.parametrize("kind", ["cuda", "jetson"])
def test_only_the_runner_gets_the_gpu(kind):
    services = load_compose((ROOT / f"clients/compose.{kind}.yaml").read_text())["services"]
    images = {each["image"] for each in services.values()}
    assert images == {f"fedattn-client:0.1.0-{kind}"}
    asks = {name for name, each in services.items() if {"deploy", "runtime"} & set(each)}
    assert asks == {"runner"}


# systemd units

HARDENED = {
    "User": "fedattn",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "LimitCORE": "0",
}


@pytest.mark.parametrize("path", UNITS, ids=short)
def test_units_restart_and_are_hardened(path):
    service = unit(path.read_text())["Service"]
    assert {name: service.get(name, ["absent"])[0] for name in HARDENED} == HARDENED
    assert service["Restart"] == ["always" if "supernode" in path.name else "on-failure"]
    assert service["ReadWritePaths"][0].split()[0] == "/srv/fedattn"
    # where torch runs it compiles its kernels, see the note in those units
    runs_torch = path.stem in ("fedattn-superlink", "fedattn-runner")
    assert service.get("MemoryDenyWriteExecute") == (None if runs_torch else ["yes"])
    # and where torch runs, nothing but loopback is reached
    is_confined = service.get("IPAddressDeny") == ["any"]
    assert is_confined == runs_torch
    if is_confined:
        assert service["IPAddressAllow"] == ["localhost"]


def test_the_drop_in_for_a_gpu_is_well_formed():
    service = unit((ROOT / "clients/fedattn-runner.gpu.conf").read_text())["Service"]
    assert service["DevicePolicy"] == ["closed"]


@pytest.mark.parametrize(
    "line", ["ProtectSytem=strict", "NoNewPrivileges", "Restart on-failure", "Nice=5"]
)
def test_the_parser_notices_a_directive_it_does_not_know(line):
    with pytest.raises(ValueError, match=re.escape(line)):
        unit(f"[Service]\n{line}\n")


systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")


@systemd
@pytest.mark.parametrize("path", UNITS, ids=short)
def test_systemd_finds_nothing_wrong_with_a_unit(path, tmp_path):
    for other in UNITS:
        text = other.read_text().replace("/opt/fedattn/bin/fedattn", "/bin/true")
        (tmp_path / other.name).write_text(text)
    assert systemd_says(tmp_path, path, path.read_text()) == ""


@systemd
def test_systemd_notices_a_broken_unit(tmp_path):
    path = UNITS[0]
    broken = path.read_text().replace("ProtectSystem=strict", "ProtectSytem=strict")
    assert "ProtectSytem" in systemd_says(tmp_path, path, broken)
