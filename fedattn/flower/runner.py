"""The resident runner: answers a SuperNode's tasks with the fedattn that is installed here.

Flower ships a ClientApp's code from the server and starts a process for every message. Here the
SuperNode only relays (`--isolation process`) and this process, which stays, claims its tasks one
at a time. A bundle is never unpacked: its sha256, computed here, must be in the device's policy,
and what runs is the installed `fedattn.flower.client_app`. Every exception becomes a refusal,
because Flower would send an exception's text to the server. The log names messages and rules,
never data.

Round secrets lie in the SuperNode's memory between messages, what the device spent on its disk:
either process may be killed, and the open round goes on without this device. A reply leaves before
the SuperNode has the state that belongs to it; so this process goes on with an open round only from
the state in which it left that round itself, or one stage could be answered twice.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Final

from flwr.app import ConfigRecord, Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedattn.errors import ConfigError, FedattnError, RefusalError, RunError
from fedattn.federation.folders import POLICY, SUPEREXEC_SECRET
from fedattn.flower import wire
from fedattn.placement import usable_device
from fedattn.policy import load_policy

PORT_FILE: Final = "runtime-port"
_LOCK_FILE = "runner.lock"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_POLL_S = 0.2
_PULL_S: Final = 120.0  # for a message's content to be here: a slow link's time for a model
_MAX_BACK_OFF_S = 10.0
_log = logging.getLogger("fedattn.runner")

# Flower waits two hours, also for the message of a run that ended while it came in: its task stays,
# its content never arrives, and the next run's messages would wait behind it.
run_clientapp.pull_and_inflate_object_from_tree = functools.partial(  # type: ignore[attr-defined]
    pull_and_inflate_object_from_tree, max_time=_PULL_S
)


class Runner:
    """Answers the tasks of the SuperNode of one device folder until asked to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = threading.Event()
        self._left: dict[int, bytes] = {}  # run id -> hash of the open round

    def stop(self) -> None:
        """Finish the task under way, if any, and return from `run`."""
        self._stop.set()

    def run(self) -> None:
        """Claim and answer tasks, one at a time; a SuperNode that is away is waited for.

        RunError if another runner holds this folder.
        """
        with _locked(self.folder):
            back_off = _POLL_S
            while not self._stop.is_set():
                try:
                    with _Connection(self.folder) as connection:
                        _log.info("connected to the SuperNode on port %d", connection.port)
                        while not self._stop.is_set():
                            token = connection.acquire()
                            back_off = _POLL_S
                            if token is None:
                                self._stop.wait(_POLL_S)
                            else:
                                self._work(connection.port, token)
                except Exception as error:
                    # (the SuperNode restarts, or is not up yet: a kind of error, never its text)
                    _log.warning("no SuperNode (%s), next try in %.1f s", _kind(error), back_off)
                    self._stop.wait(back_off)
                    back_off = min(2 * back_off, _MAX_BACK_OFF_S)

    def _work(self, port: int, token: str) -> None:
        """One task: its message in, its reply and the device's state out."""
        with _client(port, RuntimeTokenHttpInterceptor(token)) as client:
            heartbeat = HeartbeatSender(lambda: _beat(client))
            heartbeat.start()
            try:
                message, context, _, bundle = pull_task_input(client)
                began, kind = time.monotonic(), message.metadata.message_type
                reply = self.answer(message, context, bundle.content)
                push_message(client, reply, context)
                push_task_output(client, context, SubStatus.COMPLETED, "")
                outcome = wire.refusal(reply)
                done = "answered" if outcome is None else f"refused ({outcome})"
                _log.info("%s %s in %.2f s", kind, done, time.monotonic() - began)
            finally:
                if heartbeat.is_running:
                    heartbeat.stop()

    def answer(self, message: Message, context: Context, bundle: bytes) -> Message:
        """The reply of the installed ClientApp, or a refusal that names a rule and nothing else.

        A round that `context` has open is dropped from it if another state of it was left here, or
        none: another process's, an older one, one of which a message was refused before the app.
        """
        run, rounds = message.metadata.run_id, context.state.config_records
        left = self._left.pop(run, None)
        try:
            from fedattn.flower.client_app import ROUND_RECORD, app

            if ROUND_RECORD in rounds and _hash(rounds[ROUND_RECORD]) != left:
                _log.warning("an open round was not left by this process as it is: it ends here")
                del rounds[ROUND_RECORD]
            name = hashlib.sha256(bundle).hexdigest()
            if name not in allowed_bundles(self.folder):
                _log.warning("bundle %s is not in app_hashes of policy.yaml: refused", name)
                raise RefusalError("app_hash", "this bundle is not in the device's policy")
            reply = app(message=message, context=context)
            rounds = context.state.config_records
            if ROUND_RECORD in rounds:
                self._left[run] = _hash(rounds[ROUND_RECORD])
            return reply
        except RefusalError as error:
            rule = error.rule
        except ConfigError as error:
            _log.warning("%s", error)  # a person's edit: names key, value and remedy
            rule = "policy"
        except Exception as error:
            _log.warning("internal error of kind %s", _kind(error))
            rule = "internal"
        return Message(wire.pack(refusal=rule), reply_to=message)


def allowed_bundles(folder: Path) -> Collection[str]:
    """`app_hashes` of the device's policy, read anew for each task: a person may edit it."""
    return load_policy(folder / POLICY).app_hashes


class _Connection:
    """The Runtime API of the folder's SuperNode, as the one who holds the shared secret."""

    def __init__(self, folder: Path) -> None:
        self.port = int((folder / PORT_FILE).read_text())
        auth = SuperExecAuthHttpInterceptor(
            master_secret=(folder / SUPEREXEC_SECRET).read_bytes(), protected_methods={_ACQUIRE}
        )
        self._client = _client(self.port, auth)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def acquire(self) -> str | None:
        """The token of a ClientApp's task, if one is pending; it is then this process's."""
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        response = self._client.AcquireTask(request)
        return response.token if response.HasField("task") and response.token else None


def _client(
    port: int, access: RuntimeTokenHttpInterceptor | SuperExecAuthHttpInterceptor
) -> RuntimeHttpClient:
    # Without Flower's retries: they never give up, and end the process where a token expired.
    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    return RuntimeHttpClient.from_server_address(
        f"127.0.0.1:{port}", True, None, [version, access], retry_invoker=None
    )


def _beat(client: RuntimeHttpClient) -> bool:
    """Tell the SuperNode that the task is under way; False: try again soon."""
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except Exception:
        return False
    return True


def _hash(record: ConfigRecord) -> bytes:
    return hashlib.sha256(repr(sorted(record.items())).encode()).digest()


def _kind(error: Exception) -> str:
    return type(error).__name__


class _locked:  # noqa: N801 (used as a function)
    """Two runners of one folder would answer two tasks at once, with one ledger."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _LOCK_FILE
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise RunError(
                f"{self._path}: another runner serves this device; stop it first"
            ) from None

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the device folder until SIGTERM; a second one ends the task under way, too."""
    parser = argparse.ArgumentParser(prog="fedattn.flower.runner", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder.resolve()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line a poll otherwise
    runner = Runner(folder)

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        _log.info("stops after the task under way")
        runner.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    import fedattn.train  # noqa: F401 (seconds of importing torch, before the first message)

    try:
        _log.info("ready on %s", usable_device(load_policy(folder / POLICY).device))
        runner.run()
    except FedattnError as error:
        sys.exit(f"{type(error).__name__}: {error}")  # for the operator: names file and remedy
    _log.info("stopped")


if __name__ == "__main__":
    main()
