"""The embedded engine: a Flower Grid that runs the ClientApp in this process or in its workers.

Server and clients are the project's real ServerApp and ClientApp. Every message and every
client's state crosses as bytes, as on the wire; what a ClientApp raises becomes an error reply, as
on the wire; a client that vanished answers "node unavailable", as a SuperLink does when a message
expires. Results do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from types import TracebackType
from typing import Final, Self

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedattn.config import Fault
from fedattn.errors import RunError
from fedattn.flower.embedded.client import answer, load_app, set_id
from fedattn.flower.embedded.contexts import RUN_ID, Contexts, LazyNodes, NodeConfig
from fedattn.flower.embedded.crossing import pack, unpack
from fedattn.flower.embedded.pushes import Push, Sum
from fedattn.flower.embedded.workers import Task, Workers
from fedattn.flower.summing import Extract, Words
from fedattn.flower.wire import STAGES

Tap = Callable[[Message], None]
_ORDER = list(STAGES)
_STAGE_OF = {message_type: stage for stage, message_type in STAGES.items()}


class EmbeddedGrid(Grid):
    """Runs `client_app` for each of `nodes` (node id -> its `node_config`).

    `workers` processes answer (0: this one does, when a reply is pulled); they import the app, so
    `client_app` is then its place, "module:attribute". A client computes with `threads` torch
    threads, wherever. `faults` make the first devices vanish; `taps` see, in this process, every
    message that crosses. Close it, or leave its `with`, to end the workers.
    """

    waits: Final = True  # a pull yields every reply that it asks for, as they come

    def __init__(
        self,
        client_app: ClientApp | str,
        nodes: Mapping[int, NodeConfig],
        *,
        faults: Sequence[Fault] = (),
        taps: Sequence[Tap] = (),
        workers: int = 0,
        threads: int = 1,
    ) -> None:
        self._client_app = _app(client_app, workers)
        self._nodes, self._contexts, self._threads = nodes, Contexts(nodes), threads
        self._faults, self._taps = list(faults), list(taps)
        most = max((fault.clients for fault in self._faults), default=0)
        self._first = {node: i for i, node in enumerate(nsmallest(most, nodes))} if most else {}
        self._pending: dict[str, Message] = {}
        self._push_of: dict[str, Push] = {}
        self._ready: dict[str, Message] = {}  # answered when they were not asked for
        self._sum: Sum | None = None
        self._sent = 0
        self._workers = Workers(workers, str(client_app), threads) if workers else None
        self.set_run(Run.create_empty(RUN_ID))

    def close(self) -> None:
        """End the workers and free what is shared with them; whoever is being asked is cut off."""
        if self._workers is not None:
            self._workers.close()
        self._pending.clear()
        self._push_of.clear()
        self._ready.clear()
        self._sum = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def worker_pids(self) -> list[int]:
        """The processes that are there now."""
        return [] if self._workers is None else self._workers.pids

    def set_run(self, run: Run) -> None:
        """Set the run and make this process the ServerApp's task."""
        self._run = run
        TaskIdentity.task_id, TaskIdentity.run_id = 1, run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to `dst_node_id`; `group_id` is the round."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in ascending order."""
        return self._nodes.ids if isinstance(self._nodes, LazyNodes) else sorted(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; each id names one reply to pull."""
        return self._queue(list(messages), None)

    def push_summed(self, messages: Iterable[Message], length: int, extract: Extract) -> list[str]:
        """As `push_messages`; the words of each reply are added where it arises (see `summing`).

        What was not pulled of an earlier one is given up: nobody can take its sum any more.
        """
        self.give_up([name for name, push in self._push_of.items() if push.sum is not None])
        is_here = self._workers is None or bool(self._taps)
        self._sum = Sum(length, extract, is_here=is_here)
        return self._queue(list(messages), self._sum)

    def take_sum(self) -> Words:
        """The sum of the last `push_summed`, of the replies yielded (see `summing`)."""
        if self._sum is None:
            raise RunError("take_sum: nothing was pushed to be summed, or its sum was taken")
        taken, self._sum = self._sum, None
        return taken.total()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Each reply of the messages `message_ids`, once, as they are made.

        A message is handled when it is pulled, so replies do not pile up; the order is any.
        """
        names = list(message_ids)
        if self._workers is None:
            for name in names:
                if name in self._pending:
                    yield self._answered_here(self._pending.pop(name), self._push_of.pop(name))
        else:
            yield from self._answered_by(self._workers, names)

    def give_up(self, message_ids: Iterable[str]) -> None:
        """Nobody will pull these: what no client has is not sent, and no reply is kept."""
        for name in message_ids:
            self._pending.pop(name, None)
            self._push_of.pop(name, None)
            self._ready.pop(name, None)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Every reply; nothing here takes longer than its clients, so `timeout` is not needed."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _queue(self, messages: list[Message], summed: Sum | None) -> list[str]:
        push, names = Push(messages if self._workers is not None else (), summed), []
        for message in messages:
            self._sent += 1
            name = f"message-{self._sent}"
            set_id(message, name)
            self._pending[name], self._push_of[name] = message, push
            names.append(name)
        return names

    def _answered_here(self, message: Message, push: Push) -> Message:
        fault = self._fault(message)
        if fault is not None and fault.stage != _stage(message):
            return _unavailable(message)
        self._see(message)
        node = message.metadata.dst_node_id
        config, stored = self._contexts.config(node), self._contexts.stored(node)
        assert not isinstance(self._client_app, str)
        answered = answer(self._client_app, pack(message), node, config, stored, self._threads)
        if answered.context is not None:
            self._contexts.keep(node, answered.context)
        if fault is not None:
            return _unavailable(message)  # handled, spent, and never heard of again
        reply = unpack(answered.packed)
        self._see(reply)
        if push.sum is not None:
            push.sum.add(reply)
        return reply

    def _answered_by(self, workers: Workers, names: list[str]) -> Iterator[Message]:
        asked = []
        for name in names:
            if name in self._ready:
                yield self._claimed(name)
            elif name in self._pending:
                fault = self._fault(self._pending[name])
                if fault is not None and fault.stage != _stage(self._pending[name]):
                    del self._push_of[name]
                    yield _unavailable(self._pending.pop(name))
                else:
                    asked.append(name)
        wanted = frozenset(names)
        for task, packed, context in workers.results(self._tasks(asked), wanted):
            if context is not None:
                self._contexts.keep(task.message.metadata.dst_node_id, context)
            if packed is None:
                reply = _crashed(task.message)
            elif self._fault(task.message) is not None:
                reply = _unavailable(task.message)  # handled, spent, and never heard of again
            else:
                reply = unpack(packed)
                self._see(reply)
            if task.name not in self._push_of:
                continue  # given up meanwhile
            self._ready[task.name] = reply
            if task.name in wanted:
                del reply, packed
                yield self._claimed(task.name)
        yield from (self._claimed(name) for name in asked if name in self._ready)  # read elsewhere

    def _claimed(self, name: str) -> Message:
        """A reply that is to be yielded now, and that its sum counts from here on."""
        reply, summed = self._ready.pop(name), self._push_of.pop(name).sum
        if summed is not None and summed.is_here:
            summed.add(reply)
        elif summed is not None:
            summed.claim(name)
        return reply

    def _tasks(self, names: list[str]) -> Iterator[Task]:
        """The pending messages among `names`, each made ready when a worker is free for it."""
        for name in names:
            message = self._pending.pop(name, None)
            if message is None:
                continue  # asked or given up meanwhile
            self._see(message)
            push, node = self._push_of[name], message.metadata.dst_node_id
            yield Task(
                number=int(name.rpartition("-")[2]),
                name=name,
                message=message,
                push=push,
                packed=pack(message),
                config=self._contexts.config(node),
                context=self._contexts.stored(node),
                is_summed=push.sum is not None
                and not push.sum.is_here
                and self._fault(message) is None,
            )

    def _fault(self, message: Message) -> Fault | None:
        """The fault by which the node of `message` is gone at its stage of its round, if any."""
        place, stage = self._first.get(message.metadata.dst_node_id), _stage(message)
        if place is None or stage is None:
            return None
        for fault in self._faults:
            gone = place < fault.clients and str(fault.round) == message.metadata.group_id
            if gone and _ORDER.index(fault.stage) <= _ORDER.index(stage):
                return fault
        return None

    def _see(self, message: Message) -> None:
        for tap in self._taps:
            tap(message)


def _app(client_app: ClientApp | str, workers: int) -> ClientApp | str:
    """The app to call here, or its place if workers call it; RunError if they could not have it."""
    if not workers:
        return load_app(client_app) if isinstance(client_app, str) else client_app
    if not isinstance(client_app, str):
        raise RunError(
            "workers: another process cannot be given a ClientApp; name its place, "
            "'module:attribute'"
        )
    return client_app


def _stage(message: Message) -> str | None:
    return _STAGE_OF.get(message.metadata.message_type)


def _unavailable(message: Message) -> Message:
    return Message(Error(code=ErrorCode.NODE_UNAVAILABLE), reply_to=message)


def _crashed(message: Message) -> Message:
    reason = "the process that answered for this client ended"
    return Message(Error(code=ErrorCode.CLIENT_APP_CRASHED, reason=reason), reply_to=message)
