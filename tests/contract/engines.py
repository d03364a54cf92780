"""The three engines, each as one function from a case to a finished run."""

from __future__ import annotations

import gc
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedattn.config import Config
from fedattn.data import Dialogue, load_partition
from fedattn.device import Device
from fedattn.report import Report
from fedattn.simulate import Engine, simulate

_TORN = "this is no line of a ledger\n"


@dataclass(frozen=True)
class Finished:
    """A run as its engine left it, with what an auditor pins."""

    run_dir: Path
    report: Report
    exit_code: int
    server_key: str
    authority: Path
    roster: Path | None


def simulated(engine: Engine, config: Config, folder: Path, decliners: Collection[int]) -> Finished:
    """On the embedded grid or on Ray, by what `fedattn simulate --engine` calls."""
    run_dir = folder / "run"
    run_dir.mkdir()
    joined = Device.join

    def join(device: Device, *documents: bytes) -> None:
        joined(device, *documents)
        if device.index in decliners:
            device.ledger.path.write_text(_TORN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "join", join)
        result = simulate(config, run_dir, engine=engine)
    gc.collect()  # what Ray left behind is complained about here, where that is expected
    return Finished(
        run_dir,
        result.report,
        result.exit_code,
        result.server_fingerprint,
        run_dir / "authority" / "authority.pem",
        run_dir / "roster.txt",
    )


def deployed(config: Config, folder: Path, decliners: Collection[int]) -> Finished:
    """On a SuperLink, its front, and a SuperNode and a runner for each device, on 127.0.0.1."""
    from tests.deployment.loopback import Loopback

    shards = write_shards(config, folder)
    for index in decliners:
        shards[index].with_name(f"{shards[index].name}.ledger.jsonl").write_text(_TORN)
    with _numbered_devices(), Loopback(folder / "loopback", config, shards) as federation:
        result = federation.run()
        return Finished(
            result.run_dir,
            result.report,
            result.exit_code,
            result.server_fingerprint,
            federation.folder / "authority" / "authority.pem",
            None,
        )


def write_shards(config: Config, folder: Path) -> list[Path]:
    """One JSONL file a client, with exactly the conversations that a simulation gives it."""
    paths = []
    for index, dialogues in enumerate(load_partition(config.data).train):
        path = folder / f"shard-{index}.jsonl"
        path.write_text("".join(f"{json.dumps(_item(each))}\n" for each in dialogues))
        paths.append(path)
    return paths


def _item(dialogue: Dialogue) -> dict[str, Any]:
    turns = [{"speaker": turn.speaker, "text": turn.text} for turn in dialogue.turns]
    return {"id": dialogue.id, "turns": turns}


@contextmanager
def _numbered_devices() -> Iterator[None]:
    """Tell each device which stream of a seeded run is its own: a deployed one is never seeded."""
    from fedattn.flower.deployment import commands

    plain = commands.supernode

    def numbered(folder: Any, runtime_port: int) -> Any:
        command = plain(folder, runtime_port)
        *before, node_config = command.argv
        number = int(folder.path.name.rpartition("-")[2]) - 1
        return replace(command, argv=(*before, f"{node_config} partition-id={number}"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "supernode", numbered)
        yield
