"""A worker process: answers messages for any client, one after another, until its parent is gone.

It holds nothing of a client between messages: a client's state comes with each and goes back.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import signal
import socket
import threading
from dataclasses import dataclass
from typing import Any

from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity

from fedattn.errors import FedattnError
from fedattn.flower.embedded import memory
from fedattn.flower.embedded.broadcast import joined, read_broadcast
from fedattn.flower.embedded.channel import Channel, Frame
from fedattn.flower.embedded.client import answer, load_app
from fedattn.flower.embedded.contexts import RUN_ID
from fedattn.flower.embedded.crossing import pack
from fedattn.flower.embedded.shared_sum import SharedSum
from fedattn.flower.summing import Extract, extracted

BEGUN_BYTES = 8


@dataclass(frozen=True)
class Assignment:
    """A message for a client, beside its context and its large values.

    `shared_at` says which of those are broadcast, and where.
    """

    number: int
    node: int
    config: dict[str, str | int]
    skeleton: bytes
    places: tuple[tuple[str, str], ...]
    shared_at: tuple[int, ...]
    is_summed: bool


@dataclass(frozen=True)
class Opening:
    """What the messages of a push share; its broadcast and its sum come as descriptors."""

    lengths: tuple[int, ...]  # of the values broadcast
    sum_length: int | None = None
    extract: bytes = b""  # pickled


@dataclass(frozen=True)
class Outcome:
    """A reply beside its large values."""

    number: int
    skeleton: bytes
    places: tuple[tuple[str, str], ...]
    added: int  # how many additions the worker has made with this one, or 0: nothing added
    context: bytes | None  # None: as it was


@dataclass(frozen=True)
class Failure:
    """The engine itself cannot go on in this worker."""

    text: str


class _Push:
    """An opened push, as this worker holds it."""

    def __init__(self, opening: Opening, descriptors: list[int]) -> None:
        self.values = read_broadcast(descriptors[0], opening.lengths) if opening.lengths else []
        self.extract: Extract | None = None
        if opening.sum_length is not None:
            self.sum = SharedSum(memory.Segment(os.dup(descriptors[-1])), opening.sum_length)
            self.extract = pickle.loads(opening.extract)  # noqa: S301 (of the parent)


class _Worker:
    def __init__(self, channel: Channel, app: ClientApp, threads: int, begun: memoryview) -> None:
        self._channel, self._app, self._threads, self._begun = channel, app, threads, begun
        self._push = _Push(Opening(()), [])

    def serve(self) -> None:
        """Answer until the parent hangs up."""
        gc.freeze()
        while True:
            try:
                frame = self._channel.receive()
            except (EOFError, OSError):
                return
            if isinstance(frame.value, Opening):
                self._push = _Push(frame.value, frame.descriptors)
                for descriptor in frame.descriptors:
                    os.close(descriptor)
            else:
                self._answer(frame.value, frame)
                del frame
                gc.collect(1)  # Flower's records are in cycles: they would hold their vectors

    def _answer(self, asked: Assignment, frame: Frame) -> None:
        self._begun[0] = asked.number  # from here on the client may spend: never a second time
        own = iter(frame.blobs)
        stored = next(own)
        packed = joined(asked.skeleton, asked.places, asked.shared_at, self._push.values, own)
        reply, crossing, context = answer(
            self._app, packed, asked.node, asked.config, stored, self._threads
        )
        added = 0
        if asked.is_summed and self._push.extract is not None:
            words = extracted(self._push.extract, reply, self._push.sum.length)
            if words is not None:
                added = self._push.sum.add(words)
                crossing = pack(reply)  # what is left of it
        outcome = Outcome(asked.number, crossing.skeleton, crossing.places, added, context)
        self._channel.send(outcome, crossing.values)


def main(given: dict[str, Any]) -> None:
    """Serve on the descriptors that the parent passed: `channel`, `lifeline` and `begun`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    threading.Thread(target=_end_with_parent, args=(given["lifeline"],), daemon=True).start()
    channel = Channel(socket.socket(fileno=given["channel"]))
    begun = memoryview(mmap.mmap(given["begun"], BEGUN_BYTES)).cast("Q")
    TaskIdentity.task_id, TaskIdentity.run_id = 1, RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    try:
        try:
            app = load_app(given["app"])
        except Exception as error:
            channel.send(Failure(f"{given['app']}: {type(error).__name__}: {error}"))
        else:
            _serve(_Worker(channel, app, given["threads"], begun), channel)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    os._exit(0)  # nothing that a client started may keep this process


def _serve(worker: _Worker, channel: Channel) -> None:
    try:
        worker.serve()
    except FedattnError as error:
        channel.send(Failure(str(error)))


def _end_with_parent(lifeline: int) -> None:
    """The other end closes when the parent dies, however: then a client may be in mid-training."""
    os.read(lifeline, 1)
    os._exit(0)
