"""The engine's worker processes: started when first needed, replaced when one dies.

A worker has one message at a time. If it dies while a client handles it, that client has crashed; a
message that it had not begun goes to another worker. Nothing is begun twice, for a client records
what it spends before it trains. The run ends if the first worker dies before it begins anything, or
if a message loses `_STARTS` workers that way.
"""

from __future__ import annotations

import json
import mmap
import os
import selectors
import socket
import subprocess
import sys
import weakref
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from flwr.app import Message

from fedattn.errors import RunError
from fedattn.flower.embedded import memory
from fedattn.flower.embedded.channel import Channel
from fedattn.flower.embedded.crossing import Packed
from fedattn.flower.embedded.pushes import Push
from fedattn.flower.embedded.worker import BEGUN_BYTES, Assignment, Failure, Outcome

_LEAVE_S = 5.0  # for an idle worker to leave by itself
_LOOK_S = 1.0  # without a word, until it is looked at which workers are there
_STARTS = 4
_START = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from fedattn.flower.embedded.worker import main; main(given)"
)
# glibc: a vector's memory is kept for the next one, or each costs a page fault per 4 KB
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(eq=False)
class Task:
    """A message to be answered, of which push, and its client's context."""

    number: int
    name: str
    message: Message
    push: Push
    packed: Packed
    config: dict[str, str | int]
    context: bytes
    is_summed: bool
    starts_lost: int = 0  # workers that died with this task before they had begun any


class Result(NamedTuple):
    """What became of a task; no reply: its client crashed."""

    task: Task
    reply: Packed | None
    context: bytes | None  # None: as it was


@dataclass(eq=False)
class _Process:
    """A worker, the parent's ends of what connects them, and what it was given."""

    process: subprocess.Popen[bytes]
    channel: Channel
    lifeline: int
    begun: memoryview
    task: Task | None = None  # unanswered
    push: Push | None = None  # the one that it has open

    def give(self, task: Task) -> None:
        """Hand over `task`; a worker that is gone is noticed when it is read from."""
        self.task = task
        try:
            if self.push is not task.push:
                self.channel.send(*task.push.opening(self))
                self.push = task.push
            shared_at, own = task.push.broadcast.split(task.packed)
            asked = Assignment(
                task.number,
                task.message.metadata.dst_node_id,
                task.config,
                task.packed.skeleton,
                task.packed.places,
                tuple(shared_at),
                task.is_summed,
            )
            self.channel.send(asked, [task.context, *own])
        except (BrokenPipeError, ConnectionResetError):
            pass

    def hang_up(self) -> None:
        """Let the process see that nobody is left."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
            self.channel.close()

    def stop(self) -> None:
        """End the process, whatever it does, wait for it, and free what was shared with it."""
        self.hang_up()
        self.task = self.push = None  # (a push knows its workers: a cycle)
        try:
            self.process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Workers:
    """At most `count` processes that answer with the ClientApp at `app` ("module:attribute")."""

    def __init__(self, count: int, app: str, threads: int) -> None:
        self._count, self._app, self._threads = count, app, threads
        self._processes: list[_Process] = []
        self._selector = selectors.DefaultSelector()
        self._returned: list[Task] = []  # given to a worker that died before it began
        self._has_begun = False  # a worker now gone had begun a task
        self._is_closed = False
        self._finalizer = weakref.finalize(self, _stop, self._processes, self._selector)

    @property
    def pids(self) -> list[int]:
        """Of the processes that are there."""
        return [each.process.pid for each in self._processes]

    def results(self, tasks: Iterator[Task], wanted: Collection[str]) -> Iterator[Result]:
        """Have `tasks` answered, and yield each as it is; also those of an earlier call left over.

        Sums withhold what is not `wanted`, by message. Tasks are taken from the iterator as workers
        become free, before the result that freed one is yielded. RunError if a worker cannot start
        or the engine fails in it.
        """
        if self._is_closed:
            raise RunError("the engine is closed: nobody answers any more")
        while self._hand_out(tasks):
            for process in self._ready() or self._ended():
                result = self._read(process, wanted)
                if result is None:
                    continue
                self._hand_out(tasks)
                yield result
                del result
                break  # the rest may have been read meanwhile, in another call

    def close(self) -> None:
        """End every process and free what is shared with it."""
        self._is_closed = True
        self._finalizer()

    def _ready(self) -> list[_Process]:
        """Those that have something to be read, or have closed their end; none after `_LOOK_S`."""
        return [key.data for key, _ in self._selector.select(_LOOK_S)]

    def _ended(self) -> list[_Process]:
        """Those that are gone; what a client forked may hold their end, and then nothing closes."""
        ended = [each for each in self._processes if each.process.poll() is not None]
        for each in ended:
            each.channel.wait_no_more()
        return ended

    def _read(self, process: _Process, wanted: Collection[str]) -> Result | None:
        """What `process` sent, or left behind."""
        try:
            frame = process.channel.receive()
        except (EOFError, OSError):
            return self._bury(process)
        if isinstance(frame.value, Failure):
            raise RunError(f"engine worker: {frame.value.text}")
        outcome: Outcome = frame.value
        task, process.task = process.task, None
        assert task is not None
        if task.push.sum is not None:
            task.push.sum.read(process, task.name, outcome.added, is_wanted=task.name in wanted)
        reply = Packed(outcome.skeleton, outcome.places, tuple(frame.blobs))
        return Result(task, reply, outcome.context)

    def _hand_out(self, tasks: Iterator[Task]) -> bool:
        """Give every free worker a task, as far as there are some; whether any is under way."""
        for place in range(self._count):
            if place < len(self._processes) and self._processes[place].task is not None:
                continue
            task = self._returned.pop() if self._returned else next(tasks, None)
            if task is None:
                break
            if place == len(self._processes):
                self._start()
            self._processes[place].give(task)
        return any(each.task is not None for each in self._processes)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline_read, lifeline = os.pipe()
        begun = memory.allocate(BEGUN_BYTES)
        passed = {"channel": theirs.fileno(), "lifeline": lifeline_read, "begun": begun}
        given = {**passed, "app": self._app, "threads": self._threads, "path": sys.path}
        threads = str(self._threads)
        try:
            process = subprocess.Popen(  # noqa: S603 (this program's own code)
                [sys.executable, "-c", _START, json.dumps(given)],
                pass_fds=list(passed.values()),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a client prints is no output of this program's
                process_group=0,  # an interrupt at the terminal is the parent's
                env={
                    **os.environ,
                    **_ALLOCATOR,
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    "FLWR_TELEMETRY_ENABLED": "0",
                },
            )
            view = memoryview(mmap.mmap(begun, BEGUN_BYTES)).cast("Q")
        finally:
            theirs.close()
            os.close(lifeline_read)
            os.close(begun)
        started = _Process(process, Channel(ours), lifeline, view)
        self._processes.append(started)
        self._selector.register(started.channel, selectors.EVENT_READ, started)

    def _bury(self, dead: _Process) -> Result | None:
        """Take leave of a dead worker: its task crashed, or goes to another if it had not begun."""
        self._selector.unregister(dead.channel)
        self._processes.remove(dead)
        begun, task = dead.begun[0], dead.task
        dead.stop()
        self._has_begun = self._has_begun or begun > 0
        if task is None:
            return None
        if begun == task.number:
            return Result(task, None, None)
        if not begun:
            task.starts_lost += 1
            others = any(each.begun[0] for each in self._processes)
            if not (self._has_begun or others) or task.starts_lost == _STARTS:
                raise RunError(
                    f"engine worker: ended with {dead.process.returncode} before it began "
                    f"anything, try {task.starts_lost}; its error is above, or it was killed (for "
                    "want of memory: lower workers)"
                )
        self._returned.append(task)
        return None


def _stop(processes: list[_Process], selector: selectors.BaseSelector) -> None:
    for each in processes:  # all hear of it before any is waited for
        each.hang_up()
    for each in processes:
        each.stop()
    processes.clear()
    selector.close()
