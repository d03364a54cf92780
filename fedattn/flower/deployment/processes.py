"""Starting a folder's processes: one of them in this process's place, or all of them watched."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import IO, Final

import jinja2

from fedattn.errors import EXIT_OK, RunError
from fedattn.flower.deployment import commands
from fedattn.flower.deployment.commands import FRONT_DIR, NGINX_CONF, Command
from fedattn.flower.deployment.folders import (
    MAX_BODY_MB,
    MAX_OBJECT_MB,
    OBJECT_PATH,
    DeviceFolder,
    ServerFolder,
    choose_runtime_port,
    open_folder,
    replace,
)
from fedattn.flower.deployment.loopback import ensure_loopback_certificate

PIDS_FILE: Final = "pids.json"
LOCK_FILE: Final = "start.lock"
_STOP_S: Final = 15.0
_LOOK_S: Final = 0.5
_MAX_BACK_OFF_S: Final = 30.0
_LOG_BYTES: Final = 16 << 20


def names(folder: ServerFolder | DeviceFolder) -> tuple[str, ...]:
    """The processes that a folder has, in the order in which they start."""
    if isinstance(folder, ServerFolder):
        return ("superlink", "front")
    return ("supernode", "runner")


def prepare(folder: ServerFolder | DeviceFolder, name: str) -> Command:
    """Make what the process `name` needs in the folder, and return its start command."""
    if name not in names(folder):
        raise RunError(f"--only {name}: {folder.path} has {' and '.join(names(folder))}")
    (folder.path / "logs").mkdir(exist_ok=True)
    (folder.path / "flwr-home").mkdir(mode=0o700, exist_ok=True)
    if isinstance(folder, ServerFolder):
        ensure_loopback_certificate(folder.path)
        if name == "superlink":
            return commands.superlink(folder)
        command = commands.front(folder)
        if command.argv[0] == commands.find_nginx():
            write_nginx_conf(folder)
        return command
    if name == "supernode":
        return commands.supernode(folder, choose_runtime_port(folder.path))
    return commands.runner(folder)


def write_nginx_conf(folder: ServerFolder) -> Path:
    """Write the front's nginx.conf, all of whose paths are in the server's folder.

    RunError for a folder whose path nginx would read as something else.
    """
    if (odd := re.search(r'["\\;{}$\x00-\x1f\x7f]', str(folder.path))) is not None:
        raise RunError(
            f"{str(folder.path)!r}: nginx cannot take a path with {odd[0]!r}; move the folder, or "
            "say `front: python` in server.yaml"
        )
    template = (files("fedattn") / "assets" / "federation" / "nginx.conf.j2").read_text("utf-8")
    text = jinja2.Template(
        template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    ).render(
        folder=folder.path,
        listen=folder.listen,
        port=folder.port,
        superlink_port=folder.superlink_port,
        max_body_mb=MAX_BODY_MB,
        object_path=OBJECT_PATH,
        max_object_mb=MAX_OBJECT_MB,
    )
    (folder.path / FRONT_DIR).mkdir(mode=0o700, exist_ok=True)
    path = folder.path / FRONT_DIR / NGINX_CONF
    replace(path, text.encode())
    return path


def start(path: Path, only: str | None = None) -> int:
    """Start the processes of the folder `path`; the exit code once they were asked to stop.

    With `only`, this process becomes that one (for systemd, containers): it never returns.
    """
    folder = open_folder(path)
    if only is not None:
        command = prepare(folder, only)
        os.chdir(folder.path)
        os.execve(command.argv[0], command.argv, os.environ | dict(command.env))  # noqa: S606
    with (path.resolve() / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{path}: is started already; stop that one first") from None
        watch = Watch(folder, say=lambda line: print(line, flush=True))
        for number in (signal.SIGTERM, signal.SIGINT):  # before there is anything to leave behind
            signal.signal(number, watch.asked_to_stop)
        with watch:
            watch.until_asked()
    return EXIT_OK


class Watch:
    """The processes of one folder: started in order, restarted when they end, stopped by pid.

    `processes`: name -> what makes its start command, if not those of `names` and `prepare`.
    """

    def __init__(
        self,
        folder: ServerFolder | DeviceFolder,
        *,
        say: Callable[[str], None] = lambda _: None,
        processes: Mapping[str, Callable[[], Command]] | None = None,
    ) -> None:
        self.folder, self._say = folder, say
        self._processes = processes or {
            name: partial(prepare, folder, name) for name in names(folder)
        }
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._next: dict[str, float] = {}  # when an ended process may start again
        self._began: dict[str, float] = {}
        self._back_off: dict[str, float] = {}
        self._asked = False
        self._register: Callable[[], None] | None = None
        if isinstance(folder, ServerFolder):
            from fedattn.flower.deployment.nodes import (
                Registrar,  # Flower: seconds, a server's alone
            )

            self._register = Registrar(folder, say).look

    def __enter__(self) -> Watch:
        try:
            for name in self._processes:
                if not self._asked:
                    self._start(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def asked_to_stop(self, _: int, __: FrameType | None) -> None:
        """The handler of SIGTERM and SIGINT."""
        self._asked = True

    def until_asked(self) -> None:
        """Look after the processes until asked to stop."""
        while not self._asked:
            self.look()
            time.sleep(_LOOK_S)

    def look(self) -> None:
        """Restart what ended, at growing intervals while it keeps ending; register who is new."""
        for name, child in list(self._children.items()):
            code, now = child.poll(), time.monotonic()
            if code is None:
                continue
            if name not in self._next:
                ran = now - self._began[name]
                wait = 1.0 if ran > 60 else min(2 * self._back_off.get(name, 0.5), _MAX_BACK_OFF_S)
                self._back_off[name], self._next[name] = wait, now + wait
                self._say(f"{name} ended with {code}: starts again in {wait:g} s (see logs/)")
            elif now >= self._next[name]:
                del self._next[name]
                self._start(name)
        if self._register is not None and self._children["superlink"].poll() is None:
            self._register()

    def ask(self) -> None:
        """Ask every process to end, the last started first."""
        for child in reversed(list(self._children.values())):
            if child.poll() is None:
                child.terminate()

    def stop(self) -> None:
        """Ask every process to end and wait for it; who does not end in time is killed."""
        self.ask()
        for name, child in reversed(list(self._children.items())):
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._say(f"{name} did not end in {_STOP_S:g} s: killed")
                child.kill()
                child.wait()
        self._children.clear()
        (self.folder.path / PIDS_FILE).unlink(missing_ok=True)

    def _start(self, name: str) -> None:
        command = self._processes[name]()
        with _open_log(command.log) as log:
            self._children[name] = subprocess.Popen(  # noqa: S603 (our own command)
                command.argv,
                env=os.environ | dict(command.env),
                cwd=self.folder.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process, which ends them in order
            )
        self._began[name] = time.monotonic()
        pids = {name: child.pid for name, child in self._children.items()}
        replace(self.folder.path / PIDS_FILE, json.dumps(pids).encode())
        self._say(f"{name} started, pid {pids[name]}, log {command.log}")


def _open_log(path: Path) -> IO[bytes]:
    """The log, for appending; one old one is kept."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.old"))
    return path.open("ab")
