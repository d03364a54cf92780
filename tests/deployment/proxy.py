"""A TCP proxy that keeps every byte that passes, in both directions."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class RecordingProxy:
    """Passes 127.0.0.1:port on to 127.0.0.1:target; `streams` has a connection's each direction."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self._target = port, target
        self.streams: list[bytearray] = []
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.settimeout(0.2)
        self._is_done = threading.Event()
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._accepting.join()
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while not self._is_done.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                near.close()
                continue
            near.settimeout(None)
            far.settimeout(None)
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                stream = bytearray()
                self.streams.append(stream)
                thread = threading.Thread(target=self._pass, args=(source, sink, stream))
                thread.start()
                self._threads.append(thread)

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, stream: bytearray) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                stream += piece
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
