"""Four real devices behind the embedded grid, and a server that may say anything to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from fedattn import device_ledger
from fedattn.checkpoint import read_vector, released_sha256
from fedattn.config import Config
from fedattn.contribution import installed_start
from fedattn.counters import CounterMemory
from fedattn.device import Device
from fedattn.flower import wire
from fedattn.flower.client_app import app, device_of
from fedattn.flower.grid import EmbeddedGrid
from fedattn.flower.witnesses import Witnesses
from fedattn.instruction import Instruction
from fedattn.model import trainable_names
from fedattn.policy import Policy
from fedattn.privacy.events import round_event
from fedattn.secagg.server import ServerRound
from tests.federation import certified, conversations, tiny, write

HEAD = "00" * 32
STAGES = list(wire.STAGES)  # advertise, share, upload, confirm, unmask


class Fleet:
    """Devices 1..4 at nodes 101..104; `say` sends one of them any message."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        data = write(folder / "data.jsonl", conversations())
        self.folder = folder
        self.config = tiny(data, **changes)
        self.policy, policy = Policy.agreed(self.config), folder / "policy.yaml"
        self.policy.save(policy)
        nodes = {
            101 + i: {
                "device-dir": str(folder / f"device-{i + 1}"),
                "policy": str(policy),
                "partition-id": i,
            }
            for i in range(4)
        }
        self.nodes = nodes
        self.beside: dict[int, dict[str, Any]] = {}  # what a device last sent beside `message`
        self.grid = EmbeddedGrid(app, nodes)
        self.devices = [Device(folder / f"device-{i + 1}", self.policy, i) for i in range(4)]
        self.authority, self.certificates = certified(self.devices, folder)
        self.roster = tuple(device.identity.public_bytes for device in self.devices)
        model, self.start = installed_start(self.config.model, self.config.seed)
        self.vector = read_vector(model, trainable_names(model, self.config.model.trainable))

    def instruction(self, round_: int = 1, **changes: Any) -> Instruction:
        """The instruction that every device agrees to, with `changes`."""
        config: Config = changes.get("config", self.config)
        fields = {
            "config": config,
            "run": "00" * 32,
            "round": round_,
            "start_sha256": self.start,
            "model_sha256": released_sha256(self.start, self.vector),
            "dimension": len(self.vector),
            "ledger_head": HEAD,
            "roster": self.roster,
            "event": round_event(config, len(self.vector)),
        }
        return Instruction(**{**fields, **changes})

    def ask(self, i: int, message_type: str, content: RecordDict) -> Message:
        """Device i's reply to one message."""
        message = self.grid.create_message(content, message_type, 100 + i, "1")
        (reply,) = self.grid.send_and_receive([message])
        return reply

    def say(self, i: int, stage: str, **fields: Any) -> bytes | str:
        """The protocol bytes in the reply, or the rule by which it was declined (a str)."""
        if "vector" in fields:
            fields["model"] = wire.pack_model(fields.pop("vector"))
        reply = self.ask(i, wire.STAGES[stage], wire.pack(**fields))
        assert not reply.has_error(), reply.error.reason
        declined = wire.refusal(reply)
        if declined is not None:
            assert dict(reply.content.config_records["fedattn"]) == {"refusal": declined}
            assert list(reply.content) == ["fedattn"]
            return declined
        fields = dict(reply.content.config_records["fedattn"])
        self.beside.setdefault(i, {}).update(fields)
        return wire.field(reply, "message")

    def restart(self) -> None:
        """All device processes start anew: what is on disk remains, round secrets are gone."""
        device_ledger._known.clear()
        self.grid = EmbeddedGrid(app, self.nodes)

    def spent(self, i: int) -> list[str]:
        """The kinds of the lines in device i's ledger, after the first."""
        path = self.folder / f"device-{i}" / "spend.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["kind"] for line in lines[1:]]

    def holds_round(self, i: int) -> bool:
        """Whether device i still keeps secrets of a round."""
        context = self.grid._contexts[100 + i]
        assert device_of(context).index == i - 1
        return "fedattn-round" in context.state.config_records


class Play:
    """An honest round, stage by stage, in which single messages may be replaced."""

    def __init__(self, fleet: Fleet, instruction: Instruction | None = None) -> None:
        self.fleet = fleet
        self.instruction = instruction or fleet.instruction()
        self.server = ServerRound(self.instruction.spec)
        self.name = self.instruction.sha256
        memory = CounterMemory(fleet.folder / "server-counters.json")
        self.witnesses = Witnesses(memory, self.name)
        self.intent = json.dumps(
            {
                "kind": "intent",
                "prev": self.instruction.ledger_head,
                "body": {
                    "instruction_sha256": self.name.hex(),
                    "round": self.instruction.round,
                },
            }
        ).encode()

    def fields(self, stage: str, i: int) -> dict[str, Any]:
        """What the honest server sends to device i at `stage`."""
        server = self.server
        if stage == "advertise":
            remembered = self.witnesses.remembered(self.key(i))
            return {"instruction": self.instruction.document, "remembered": remembered}
        relay: dict[str, Callable[[], bytes]] = {
            "share": lambda: server.key_list(i),
            "upload": lambda: server.mailbox(i),
            "confirm": server.survivors,
            "unmask": lambda: server.confirmations(i),
        }
        fields: dict[str, Any] = {"instruction": self.name, "message": relay[stage]()}
        if stage == "share":
            self.witnesses.remember()
            fields["counters"] = self.witnesses.shown_to(self.key(i), self.near(i))
        if stage == "upload":
            fields["vector"] = self.fleet.vector
            fields["witnesses"] = self.witnesses.signatures_for(self.key(i))
        if stage == "confirm":
            fields["intent"] = self.intent
        return fields

    def take(self, stage: str, i: int, reply: bytes) -> None:
        """The honest server accepts device i's reply."""
        server = self.server
        if stage == "confirm":
            server.confirmed(i, reply, hashlib.sha256(self.intent).digest())
            return
        accept = {
            "advertise": server.advertised,
            "share": server.shared,
            "upload": server.uploaded,
            "unmask": server.revealed,
        }
        accept[stage](i, reply)
        if stage == "advertise":
            counter = self.fleet.beside[i]["counter"]
            self.witnesses.add(self.witnesses.check(self.key(i), counter))
        if stage == "share":
            signatures = self.fleet.beside[i]["countersignatures"]
            self.witnesses.countersigned(self.key(i), self.near(i), signatures)

    def key(self, i: int) -> bytes:
        """Device i's identity."""
        return self.instruction.roster[i - 1]

    def near(self, i: int) -> list[bytes]:
        """The members whose keys device i is shown."""
        return [self.key(other) for other in self.server.neighbours(i)]

    def stage(self, stage: str, only: tuple[int, ...] = (1, 2, 3, 4)) -> None:
        """The honest server's part of one stage with some devices."""
        for i in only:
            reply = self.fleet.say(i, stage, **self.fields(stage, i))
            assert isinstance(reply, bytes), reply
            self.take(stage, i, reply)

    def until(self, stage: str) -> Play:
        """Every stage before `stage`."""
        for earlier in STAGES[: STAGES.index(stage)]:
            self.stage(earlier)
        return self
