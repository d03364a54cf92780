"""A ClientApp for tests of the workers, at "tests.flower.answering:app", and its `Extract`s."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedattn.flower.arrays import to_array, view
from fedattn.flower.embedded import worker

LENGTH = 3000  # (a vector that is cut out of its message)
app = ClientApp()
_pack = worker.pack


def words_of(node, factor=1):
    return np.arange(LENGTH, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(node * factor)


@app.query("advertise")
def advertise(message, context):
    """How often this client was asked, where, and a byte of what it was sent."""
    seen = context.state.config_records.get("seen", ConfigRecord({"count": 0}))
    context.state["seen"] = ConfigRecord({"count": seen["count"] + 1})
    torch = sys.modules.get("torch")
    found = {
        "node": context.node_id,
        "count": seen["count"] + 1,
        "pid": os.getpid(),
        "threads": 0 if torch is None else torch.get_num_threads(),
        "omp": os.environ.get("OMP_NUM_THREADS", ""),
    }
    return Message(RecordDict({"r": ConfigRecord(found)}), reply_to=message)


@app.train("upload")
def upload(message, context):
    """A vector that is the sum of the model's and the client's own, unless it is to go wrong."""
    do = message.content["do"]
    fate, node = dict(do).get(str(context.node_id), ""), context.node_id
    if "tried" in do:
        with (Path(do["tried"]) / f"{node}").open("a") as file:
            file.write("x")
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "exit":
        os._exit(3)
    if fate == "raise":
        raise ValueError("what went wrong")
    if fate == "sleep":
        time.sleep(60)
    if fate == "refuse":
        return Message(RecordDict({"no": ConfigRecord({"rule": "a"})}), reply_to=message)
    if fate == "kill before the reply":
        worker.pack = _die
    words = words_of(node)
    if "model" in message.content:
        model = view(message.content["model"]["vector"])
        assert not model.flags.writeable
        words = words + model.view(np.uint32)
        message.content["model"]["vector"].data = b""  # its own copy of the record, not another's
    reply = RecordDict({"v": ArrayRecord({"words": to_array(words)})})
    return Message(reply, reply_to=message)


def _die(message):
    """In a worker, after the addition, in place of what turns the reply into bytes."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Take:
    """Takes the words out of a reply that has some."""

    def __call__(self, reply):
        if "v" not in reply.content:
            return None
        return view(reply.content["v"].pop("words"))


@dataclass(frozen=True)
class Mistaken:
    """Gives too few words, or fails."""

    fails: bool

    def __call__(self, reply):
        if self.fails:
            raise KeyError("no such record")
        return np.zeros(3, np.uint32)
