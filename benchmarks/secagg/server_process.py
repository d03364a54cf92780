"""The server of a measured round, alone in its own process: its CPU and memory are its own.

A frame is `op u8 | index u32 | length u64 | payload`; `op` counts `OPS`, most of which are the
methods of `ServerRound`. CPU is taken around each call, so that the pipe is not counted; memory is
the process's own high-water mark (VmHWM: unlike ru_maxrss it does not start at the parent's).
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from benchmarks.secagg.sizes import STATEMENT
from fedattn.secagg import RoundSpec
from fedattn.secagg.server import ServerRound
from fedattn.update import Codec

OPS = (
    "start",
    "advertised",
    "key_list",
    "shared",
    "mailbox",
    "uploaded",
    "survivors",
    "confirmed",
    "confirmations",
    "revealed",
    "total",
    "decode",
    "report",
)
_FRAME = struct.Struct(">BIQ")
_ROOT = Path(__file__).parents[2]


def memory(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class Served:
    """The child's side: one round, and what it cost."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.before_uploads = 0
        self.peak = 0
        self.total: Any = None

    def answer(self, op: str, index: int, payload: bytes) -> bytes:
        """What the frame asks for; the CPU of the call itself goes to `cpu[op]`."""
        if op == "start":
            codec, _, spec = payload.partition(b"|")
            self.server = ServerRound(RoundSpec.from_bytes(spec))
            self.codec = Codec(*json.loads(codec))
            return b""
        if op == "report":
            return json.dumps(self.report()).encode()
        if op == "uploaded" and not self.before_uploads:
            self.before_uploads = memory("VmRSS")
        if op == "decode":
            if index:  # not every client masked: the sum is noise, its size is not
                self.total.fill(0)
            before = time.process_time()
            self.codec.decode_mean(self.total, len(self.server.survivor_indices))
            self.cpu[op] += time.process_time() - before
            self.peak = memory("VmHWM")
            return bytes(self.total.data)
        method, given = getattr(self.server, op), self._arguments(op, index, payload)
        before = time.process_time()
        reply = method(*given)
        self.cpu[op] += time.process_time() - before
        if op == "total":
            self.total = reply
            return b""
        return reply or b""

    def _arguments(self, op: str, index: int, payload: bytes) -> tuple[object, ...]:
        if op == "confirmed":
            return (index, payload, STATEMENT)
        if op in ("advertised", "shared", "uploaded", "revealed"):
            return (index, payload)
        return (index,) if op in ("key_list", "mailbox", "confirmations") else ()

    def report(self) -> dict[str, Any]:
        """CPU seconds by call, and bytes of memory."""
        spec = self.server.spec
        return {
            "cpu": dict(self.cpu),
            "before_uploads": self.before_uploads,
            "peak": self.peak,
            "threads": getattr(self.server, "_threads", 1),
            "vector": spec.dimension * (2 if spec.modulus_bits <= 16 else 4),
        }


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer frames until there are no more."""
    served = Served()
    while head := requests.read(_FRAME.size):
        op, index, size = _FRAME.unpack(head)
        reply = served.answer(OPS[op], index, requests.read(size))
        replies.write(_FRAME.pack(op, index, len(reply)) + reply)
        replies.flush()


class ServerProcess:
    """The parent's side: `call` a method of the round in the child."""

    def __init__(self, spec: RoundSpec, codec: Codec) -> None:
        command = [sys.executable, "-m", "benchmarks.secagg.server_process"]
        self._child = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        parameters = json.dumps([codec.clip_range, codec.grid_scale, codec.modulus_bits])
        self.call("start", 0, parameters.encode() + b"|" + spec.to_bytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait()

    def call(self, op: str, index: int = 0, payload: bytes = b"") -> bytes:
        """The reply; RuntimeError if the child died (its traceback is on stderr)."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(_FRAME.pack(OPS.index(op), index, len(payload)))
        self._child.stdin.write(payload)
        self._child.stdin.flush()
        head = self._child.stdout.read(_FRAME.size)
        if len(head) < _FRAME.size:
            raise RuntimeError(f"the server process ended at `{op}`")
        return self._child.stdout.read(_FRAME.unpack(head)[2])

    def total(self, *, exact: bool) -> np.ndarray:
        """Unmask and decode; the sum (d,) uint32 (zeros if not `exact`)."""
        self.call("total")
        return np.frombuffer(self.call("decode", 0 if exact else 1), np.uint32)

    def report(self) -> dict[str, Any]:
        """See `Served.report`."""
        report: dict[str, Any] = json.loads(self.call("report"))
        return report


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
