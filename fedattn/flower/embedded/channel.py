"""Frames between the engine and a worker: a small value, large bytes, descriptors.

A frame above `_INLINE` travels as a descriptor of shared memory that holds it. So what is under way
always fits the socket's buffers, and neither side waits for the other to read.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedattn.flower.embedded import memory

_INLINE = 16384
_HEAD = struct.Struct("<QQ?")  # bytes of the value, of the whole frame, in shared memory or not
_MOST_DESCRIPTORS = 4


class Frame(NamedTuple):
    """What one `send` sent."""

    value: Any
    blobs: list[bytes]
    descriptors: list[int]  # the receiver's to close


class Channel:
    """One end of a connected pair of stream sockets; its two processes trust each other."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(
        self, value: Any, blobs: Sequence[bytes] = (), descriptors: Sequence[int] = ()
    ) -> None:
        """Send a picklable value, `blobs`, copies of `descriptors`; OSError if nobody is left."""
        stored = pickle.dumps((value, [len(blob) for blob in blobs]), pickle.HIGHEST_PROTOCOL)
        size = len(stored) + sum(map(len, blobs))
        if size <= _INLINE:
            self._send(
                b"".join([_HEAD.pack(len(stored), size, False), stored, *blobs]), descriptors
            )
            return
        segment = memory.Segment(memory.allocate())
        try:
            memory.write(segment.descriptor, [stored, *blobs])
            head = _HEAD.pack(len(stored), size, True)
            self._send(head, [*descriptors, segment.descriptor])
        finally:
            segment.close()

    def receive(self) -> Frame:
        """The next frame; EOFError or OSError if the other side is gone."""
        head, descriptors, _, _ = socket.recv_fds(self._socket, _HEAD.size, _MOST_DESCRIPTORS)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        head += self._rest(_HEAD.size - len(head))
        stored, size, is_shared = _HEAD.unpack(head)
        if is_shared:
            segment = memory.Segment(descriptors.pop())
            try:
                value, lengths = _loaded(memory.read(segment.descriptor, stored, 0))
                blobs, at = [], stored
                for length in lengths:
                    blobs.append(memory.read(segment.descriptor, length, at))
                    at += length
            finally:
                segment.close()
            return Frame(value, blobs, descriptors)
        body = self._rest(size)
        value, lengths = _loaded(body[:stored])
        blobs, at = [], stored
        for length in lengths:
            blobs.append(body[at : at + length])
            at += length
        return Frame(value, blobs, descriptors)

    def wait_no_more(self) -> None:
        """From here on `receive` gives what has arrived whole, or else raises OSError."""
        self._socket.setblocking(False)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        sent = socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else 0
        self._socket.sendall(memoryview(data)[sent:])

    def _rest(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._socket.recv(length)
            if not part:
                raise EOFError("the other side is gone")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def _loaded(stored: bytes) -> Any:
    return pickle.loads(stored)  # noqa: S301 (of the process that this one started, or its parent)
