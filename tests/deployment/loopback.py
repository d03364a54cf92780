"""A real federation on 127.0.0.1: folders by the kit, processes by the start commands.

    with Loopback(tmp_path, config, shards) as federation:
        result = federation.run()

Every process is Flower's or fedattn's own, started as `fedattn federation start` does; each is
stopped by its own pid, whatever happens.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml

from fedattn.config import Config
from fedattn.federation.authority import approve
from fedattn.federation.device import install, join
from fedattn.federation.documents import MemberRequest, read_any_request
from fedattn.federation.folders import INVITATION
from fedattn.federation.server import admit, found_with_server
from fedattn.flower.bundle import bundle_sha256
from fedattn.flower.deployment.commands import Command
from fedattn.flower.deployment.control import Control
from fedattn.flower.deployment.folders import DeviceFolder, open_device, open_server
from fedattn.flower.deployment.processes import Watch
from fedattn.flower.deployment.submit import Deployed, run
from fedattn.policy import OwnData, Policy

# a policy's text, from the device's own data file
PolicyOf = Callable[[Path], str]


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def agreed(config: Config) -> PolicyOf:
    """The policy that allows `config` and this fedattn's bundle."""

    def text(data: Path) -> str:
        policy = Policy.agreed(config, data=OwnData(path=str(data)))
        allowed = policy.model_copy(update={"app_hashes": [bundle_sha256()]})
        return yaml.safe_dump(allowed.model_dump(mode="json"), sort_keys=False)

    return text


class Loopback:
    """One authority and server in `folder`, and a device for each of `shards` (JSONL files).

    On entering all processes run; `devices=k` starts the first k devices only.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        shards: Sequence[Path],
        *,
        policy: PolicyOf | None = None,
        front: str = "auto",
        poll_s: float = 0.2,
        is_started: bool = True,
        processes: Callable[[DeviceFolder], Mapping[str, Callable[[], Command]]] | None = None,
    ) -> None:
        self.folder, self.config, self.shards = folder, config, list(shards)
        self.policy = policy or agreed(config)
        self.front, self.poll_s, self.is_started = front, poll_s, is_started
        self.processes = processes  # of a device, if not those of the start commands
        self.server = folder / "server"
        self.devices: list[Path] = []
        self.watches: dict[Path, Watch] = {}
        self.lines: list[str] = []
        self._lock, self._done = threading.RLock(), threading.Event()

    def __enter__(self) -> Self:
        at = datetime.now(UTC)
        found_with_server(
            self.folder,
            "127.0.0.1",
            name="loopback",
            port=free_port(),
            superlink_port=free_port(),
            at=at,
            valid_days=30,
        )
        self.set(self.server / "server.yaml", front=self.front)
        for number, shard in enumerate(self.shards, 1):
            self.devices.append(self.add(f"device-{number}", shard))
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump(self.config.model_dump(mode="json", exclude_none=True))
        )
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        try:
            if self.is_started:
                for each in (self.server, *self.devices):
                    self.start(each)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything that was started, the devices first."""
        self._done.set()
        self._thread.join()
        for folder in self.devices:
            if folder in self.watches:
                self.watches[folder].ask()  # all at once: each takes seconds
        for folder in [*self.devices, self.server]:
            self.stop(folder)

    def add(self, name: str, shard: Path, *, is_admitted: bool = True) -> Path:
        """Make a device: it joins, is approved, and unless told otherwise admitted; its folder."""
        folder, at = self.folder / name, datetime.now(UTC)
        request = join(
            folder,
            self.folder / INVITATION,
            name,
            policy=self.policy(shard),
            data=shard,
            at=at,
        )
        asked = read_any_request(request)
        assert isinstance(asked, MemberRequest)
        approval = approve(self.folder / "authority", asked, at=at)
        install(folder, approval, at=at)
        if is_admitted:
            admit(self.server, approval, at=at)
        self.set(folder / "federation.yaml", poll_s=self.poll_s)
        return folder

    @staticmethod
    def set(path: Path, **values: Any) -> None:
        """Set keys of a YAML file."""
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))

    def start(self, folder: Path) -> None:
        """Start the processes of a folder, and keep them running."""
        is_server = folder == self.server
        with self._lock:
            opened = open_server(folder) if is_server else open_device(folder)
            others = None
            if isinstance(opened, DeviceFolder) and self.processes is not None:
                others = self.processes(opened)
            watch = Watch(
                opened,
                say=lambda line: self.lines.append(f"{folder.name}: {line}"),
                processes=others,
            )
            self.watches[folder] = watch.__enter__()
        if is_server:
            with Control(open_server(folder)) as control:
                control.wait(30)

    def stop(self, folder: Path) -> None:
        """Stop the processes of a folder, in order."""
        with self._lock:
            watch = self.watches.pop(folder, None)
            if watch is not None:
                watch.stop()

    def pid(self, folder: Path, name: str) -> int:
        """The pid of a process of a folder."""
        return int(json.loads((folder / "pids.json").read_text())[name])

    def kill(self, folder: Path, name: str) -> None:
        """`kill -9` one process of a folder; it starts again as a service would."""
        os.kill(self.pid(folder, name), signal.SIGKILL)

    def run(self, *overrides: str, **options: Any) -> Deployed:
        """`fedattn federation run`."""
        return run(self.server, self.folder / "config.yaml", list(overrides), **options)

    def log(self, folder: Path, name: str) -> str:
        """The log of a process so far."""
        return (folder / "logs" / f"{name}.log").read_text()

    def until(self, holds: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        """Wait until `holds()`; AssertionError saying `what` if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
            time.sleep(0.05)

    def online(self) -> int:
        """How many SuperNodes are connected."""
        with Control(open_server(self.server)) as control:
            return control.online()

    def _look(self) -> None:
        while not self._done.wait(0.3):
            with self._lock:
                for watch in self.watches.values():
                    watch.look()
