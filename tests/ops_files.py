"""Readers of the files that deploy a federation: what a tool says of them, and what they hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import crossplane
import yaml
from compose_spec import PyCompose
from packaging.utils import canonicalize_name
from typer.core import TyperGroup
from typer.main import get_command

from fedattn.cli import app

ROOT = Path(__file__).parent.parent
DOCKERFILES = [ROOT / "server/Dockerfile", *sorted((ROOT / "clients").glob("Dockerfile.*"))]
COMPOSE = [ROOT / "server/compose.yaml", *sorted((ROOT / "clients").glob("compose*.yaml"))]
UNITS = sorted([*(ROOT / "server").glob("*.service"), *(ROOT / "clients").glob("*.service")])
PINS = sorted([*(ROOT / "server").glob("requirements*.txt"), *(ROOT / "clients").glob("*.txt")])
NAMES = {"server": ("superlink", "front"), "clients": ("supernode", "runner")}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def hadolint(path: Path) -> list[str]:
    """The rules that hadolint says a Dockerfile breaks, style included."""
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", "--format", "json", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [f"{each['line']}: {each['code']} {each['message']}" for each in json.loads(done.stdout)]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, comments gone and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (name.upper(), rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def pins(path: Path) -> dict[str, tuple[str, str]]:
    """Name -> (version, hash) of a requirements file; every line must be such a pin."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})", line)
        assert match, f"{short(path)}: {line!r} is not NAME==VERSION --hash=sha256:..."
        found[canonicalize_name(match[1])] = (match[2], match[3])
    return found


def load_compose(text: str) -> dict:
    """A compose file as the compose specification's parser reads it, defaults put in."""
    defaults = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    plain = json.loads(json.dumps(yaml.safe_load(defaults)))  # anchors written out
    return PyCompose.from_yaml(yaml.safe_dump(plain)).to_dict()


# what a unit of ours may say, by section: a directive that systemd does not know is ignored by it
DIRECTIVES = {
    "Unit": "Description Documentation After Wants StartLimitIntervalSec",
    "Install": "WantedBy",
    "Service": """
        Type User Group WorkingDirectory Environment ExecStart Restart RestartSec KillMode
        TimeoutStopSec ReadWritePaths InaccessiblePaths IPAddressDeny IPAddressAllow
        RestrictAddressFamilies ProtectSystem ProtectHome PrivateTmp PrivateDevices PrivateUsers
        NoNewPrivileges CapabilityBoundingSet AmbientCapabilities ProtectClock
        ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules
        ProtectKernelTunables ProtectProc RestrictNamespaces RestrictRealtime RestrictSUIDSGID
        LockPersonality MemoryDenyWriteExecute RemoveIPC SystemCallArchitectures
        SystemCallFilter SystemCallErrorNumber UMask LimitCORE LimitNOFILE
        DevicePolicy DeviceAllow SupplementaryGroups
    """,
}


def unit(text: str) -> dict[str, dict[str, list[str]]]:
    """Section -> directive -> values; a line that is neither known nor a comment is refused."""
    sections: dict[str, dict[str, list[str]]] = {}
    here = ""
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            here = line[1:-1]
            sections[here] = {}
        elif line and not line.startswith(("#", ";")):
            name, equals, value = line.partition("=")
            if not equals or name not in DIRECTIVES.get(here, "").split():
                raise ValueError(f"[{here}] {line}")
            sections[here].setdefault(name, []).append(value)
    return sections


def systemd_says(tmp_path: Path, path: Path, text: str) -> str:
    """What systemd-analyze says of a unit whose program is on this machine."""
    (tmp_path / path.name).write_text(text.replace("/opt/fedattn/bin/fedattn", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / path.name],
        capture_output=True,
        text=True,
        timeout=60,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )
    return "\n".join(line for line in done.stderr.splitlines() if path.name in line)


def blocks(parsed: list[dict], *names: str) -> Iterator[dict]:
    """The directives of these names, at whatever depth."""
    for each in parsed:
        if each["directive"] in names:
            yield each
        yield from blocks(each.get("block", []), *names)


def parse_nginx(path: Path) -> list[dict]:
    """The directives of an nginx.conf; ValueError for one that nginx would not take."""
    found = crossplane.parse(str(path), combine=True)
    if found["errors"]:
        raise ValueError(found["errors"][0]["error"])
    parsed: list[dict] = found["config"][0]["parsed"]
    for each in _directives(parsed):
        if each["directive"] not in crossplane.analyzer.DIRECTIVES:
            raise ValueError(f"unknown directive {each['directive']}, line {each['line']}")
    return parsed


def _directives(parsed: list[dict]) -> Iterator[dict]:
    """All of them, but not the lines of a map, which are no directives."""
    for each in parsed:
        yield each
        if each["directive"] != "map":
            yield from _directives(each.get("block", []))


def parsed(argv: list[str]) -> tuple[list[str], dict]:
    """The names of the command that fedattn would run, and its arguments; click.UsageError."""
    command, context, path = get_command(app), None, []
    while True:
        context = command.make_context("fedattn", list(argv), parent=context)
        if not isinstance(command, TyperGroup):
            return path, context.params
        name, command, argv = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        path.append(name)
