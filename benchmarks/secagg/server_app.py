"""Memory of the process that runs a round as the ServerApp does, with every client in another.

    python -m benchmarks.secagg.server_app --clients 1000 --dim 1000000

The parent runs `RoundRunner` over a Flower Grid; its messages cross a pipe as protobuf bytes to a
child, where real clients of `fedattn.secagg` answer (constant vectors instead of training). Every
client masks, so the sum is checked exactly. Printed: the parent's peak resident memory above what
it held when the first upload was asked for (keys, shares, mailboxes, code), in vectors of d words.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import torch
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from benchmarks.secagg.server_process import memory
from benchmarks.secagg.sizes import identities
from fedattn.config import Config, config_from_dict
from fedattn.counters import Counter, CounterMemory, split
from fedattn.flower import wire
from fedattn.flower.grid import EmbeddedGrid
from fedattn.flower.observer import SilentObserver
from fedattn.flower.rounds import RoundRunner
from fedattn.instruction import Instruction
from fedattn.privacy.events import round_event
from fedattn.randomness import Randomness
from fedattn.secagg import client

_SIZE = struct.Struct(">Q")
_ROOT = Path(__file__).parents[2]


class Intent:
    """As much of a ledger entry as a round needs."""

    line = b"an intent"
    hash = hashlib.sha256(line).hexdigest()


class Clients:
    """The child's side: all members, answering stage by stage."""

    def __init__(self) -> None:
        self.states, self.instruction = {}, None

    def answer(self, message: Message) -> Message:
        node, stage = message.metadata.dst_node_id, message.metadata.message_type
        identity = self.identities[node] if self.states else None
        beside: dict[str, bytes] = {}
        if stage == wire.ADVERTISE:
            if self.instruction is None:
                self.instruction = Instruction.parse(wire.field(message, "instruction"))
                self.spec = self.instruction.spec
                self.identities = identities(len(self.spec.roster))
            state, reply = client.advertise(
                self.spec, node, self.identities[node], Randomness.from_os()
            )
            counter = Counter.sign(self.identities[node], self.spec.instruction_hash, 1, bytes(32))
            beside["counter"] = counter.to_bytes()
        else:
            state, given = self.states[node], wire.field(message, "message")
            if stage == wire.SHARE:
                state, reply = client.share(state, identity, given, Randomness.from_os())
                counters = split(wire.field(message, "counters"))
                beside["countersignatures"] = b"".join(
                    each.countersign(identity) for each in counters
                )
            elif stage == wire.UPLOAD:
                wire.vector(message, self.spec.dimension)
                words = np.full(self.spec.dimension, node, np.uint32)
                state, reply = client.upload(state, identity, given, words)
            elif stage == wire.CONFIRM:
                statement = hashlib.sha256(wire.field(message, "intent")).digest()
                state, reply = client.confirm(state, identity, given, statement)
            else:
                state, reply = client.unmask(state, identity, given)
        self.states[node] = state
        return Message(wire.pack(message=reply, **beside), reply_to=message)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    clients = Clients()
    while head := requests.read(_SIZE.size):
        stored = requests.read(_SIZE.unpack(head)[0])
        reply = clients.answer(message_from_proto(ProtoMessage.FromString(stored)))
        data = message_to_proto(reply).SerializeToString()
        replies.write(_SIZE.pack(len(data)))
        replies.write(data)
        replies.flush()


class PipeGrid(EmbeddedGrid):
    """A grid whose clients are the child's; replies are read when they are pulled."""

    def __init__(self, clients: int) -> None:
        super().__init__(None, {node: {} for node in range(1, clients + 1)})
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.secagg.server_app", "--serve"],
            cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for name in message_ids:
            message = self._pending.pop(name)
            data = message_to_proto(message).SerializeToString()
            self._child.stdin.write(_SIZE.pack(len(data)))
            self._child.stdin.write(data)
            self._child.stdin.flush()
            del data, message
            size = _SIZE.unpack(self._child.stdout.read(_SIZE.size))[0]
            yield message_from_proto(ProtoMessage.FromString(self._child.stdout.read(size)))

    def close(self) -> None:
        self._child.stdin.close()
        self._child.wait()


class Watch(SilentObserver):
    """Notes the memory when the first upload is asked for."""

    before_uploads = 0

    def stage(self, number: int, stage: str, done: int, expected: int) -> None:
        if stage == "upload" and not self.before_uploads:
            self.before_uploads = memory("VmRSS")


def config(clients: int, colluding: float, dropout: float) -> Config:
    """A cohort of `clients` with the least quorum."""
    c = int(colluding * clients)
    secagg = {"threshold": (clients + c) // 2 + 1, "max_colluding": c, "dropout_share": dropout}
    return config_from_dict(
        {
            "name": "benchmark",
            "data": {"clients": clients},
            "privacy": {"unit": "none", "noise": "none"},
            "secagg": {**secagg, "grid_scale": 1024.0, "modulus_bits": 32},
        }
    )


def measure(clients: int, dim: int) -> dict[str, float]:
    """One round; what its process held."""
    settings = config(clients, 1 / 3, 0.05)
    instruction = Instruction(
        config=settings,
        run="00" * 32,
        round=1,
        start_sha256="00" * 32,
        model_sha256="00" * 32,
        dimension=dim,
        ledger_head="00" * 32,
        roster=tuple(key.public_bytes for key in identities(clients).values()),
        event=round_event(settings, dim),
    )
    grid, watch, began = PipeGrid(clients), Watch(), time.monotonic()
    with TemporaryDirectory() as folder:
        counters = CounterMemory(Path(folder) / "counters.json")
        runner = RoundRunner(grid, list(range(1, clients + 1)), watch, 3600.0, counters)
        result = runner.run(instruction, torch.zeros(dim), Intent())
    peak = memory("VmHWM")
    grid.close()
    assert (result.total == np.uint32(clients * (clients + 1) // 2)).all(), "the sum is wrong"
    return {
        "clients": clients,
        "dim": dim,
        "degree": instruction.spec.degree,
        "share_threshold": instruction.spec.share_threshold,
        "before_uploads_mb": watch.before_uploads / 1e6,
        "peak_mb": peak / 1e6,
        "server_app_peak_vectors": (peak - watch.before_uploads) / (4 * dim),
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=1_000_000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    else:
        print(json.dumps(measure(options.clients, options.dim), indent=2))


if __name__ == "__main__":
    main()
