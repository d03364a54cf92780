"""Stages that only speak the protocol import neither torch nor Opacus, each run cold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context, Message

from fedattn.flower import wire
from tests.attacks.fleet import STAGES, Fleet, Play

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "opacus", "ray", "scipy", "dp_accounting"}
TRAINING = {"torch", "opacus"}


class ColdFleet(Fleet):
    """Four devices, of which the first starts a new process for every message."""

    def __init__(self, folder, **changes):
        super().__init__(folder, **changes)
        self.imported = {}

    def ask(self, i, message_type, content):
        if i != 1:
            return super().ask(i, message_type, content)
        message = self.grid.create_message(content, message_type, 101, "1")
        folder = self.folder / "cold"
        folder.mkdir(exist_ok=True)
        context = context_to_proto(self.grid._contexts[101]).SerializeToString()
        (folder / "message").write_bytes(message_to_proto(message).SerializeToString())
        (folder / "context").write_bytes(context)
        command = [sys.executable, "-W", "ignore", "-m", "tests.flower.cold", str(folder)]
        subprocess.run(command, check=True, cwd=ROOT, timeout=120)
        stored = Context.FromString((folder / "context").read_bytes())
        self.grid._contexts[101] = context_from_proto(stored)
        modules = {name.partition(".")[0] for name in (folder / "modules").read_text().split()}
        self.imported.setdefault(message_type, set()).update(modules & HEAVY)
        reply = message_from_proto(Message.FromString((folder / "reply").read_bytes()))
        return reply


def whole_round(fleet):
    """Every message of a run with one round; what each made the first device import."""
    enrolled = fleet.ask(1, wire.ENROLL, wire.pack())
    assert wire.field(enrolled, "key") == fleet.roster[0]
    met = fleet.ask(1, wire.MEMBERS, wire.pack(certificates=fleet.certificates))
    assert wire.refusal(met) is None
    play = Play(fleet)
    for stage in STAGES:
        play.stage(stage)
    play.server.total()
    assert fleet.spent(1) == ["accepted", "spent"]
    return fleet.imported


PUBLIC = {"start": "public", "architecture": None, "trainable": "bias_norm"}


@pytest.mark.slow  # seven cold starts
@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_protocol_stages_run_cold_without_torch(tmp_path, mode):
    unit = "conversation" if mode == "local" else "client"
    fleet = ColdFleet(tmp_path, model=PUBLIC, privacy={"unit": unit, "noise": mode})
    imported = whole_round(fleet)
    assert set(imported) == {wire.ENROLL, wire.MEMBERS, *wire.STAGES.values()}
    assert "torch" in imported.pop(wire.UPLOAD)  # so the list would show it
    assert not {stage: heavy & TRAINING for stage, heavy in imported.items() if heavy & TRAINING}
    # and what prices a spend is needed where one is decided alone
    assert {stage for stage, heavy in imported.items() if heavy} <= {wire.ADVERTISE}


@pytest.mark.slow
def test_a_random_start_is_drawn_once_and_remembered(tmp_path):
    fleet = ColdFleet(tmp_path)
    for round_, drawn in ((1, True), (2, False)):
        fleet.imported.clear()
        play = Play(fleet, fleet.instruction(round_))
        assert isinstance(fleet.say(1, "advertise", **play.fields("advertise", 1)), bytes)
        assert ("torch" in fleet.imported[wire.ADVERTISE]) is drawn


def test_importing_the_client_app_imports_nothing_heavy():
    code = "import sys, fedattn.flower.client_app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert not {name.partition(".")[0] for name in done.stdout.split()} & HEAVY
