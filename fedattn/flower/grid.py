"""The embedded engine: a Flower Grid that runs the ClientApp in this process.

Server and clients are the project's real ServerApp and ClientApp. Every message and every
client's state crosses as protobuf bytes, as on the wire; what a ClientApp raises becomes an error
reply, as on the wire; a client that vanished answers "node unavailable", as a SuperLink does when
a message expires.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedattn.config import Fault
from fedattn.flower.wire import STAGES

Tap = Callable[[Message], None]
_RUN_ID = 1
_ORDER = list(STAGES)
_STAGE_OF = {message_type: stage for stage, message_type in STAGES.items()}


class EmbeddedGrid(Grid):
    """Runs `client_app` for each of `nodes` (node id -> its `node_config`), one after another.

    A message is handled when its reply is pulled, so a caller that pulls one by one sees progress.
    `faults` make the first devices vanish; `taps` see every message that crosses.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Mapping[int, Mapping[str, str | int]],
        *,
        faults: Sequence[Fault] = (),
        taps: Sequence[Tap] = (),
    ) -> None:
        self._client_app = client_app
        self._contexts = {
            node: Context(_RUN_ID, node, dict(config), RecordDict(), {})
            for node, config in nodes.items()
        }
        self._faults, self._taps = list(faults), list(taps)
        self._pending: dict[str, Message] = {}
        self._sent = 0
        self.set_run(Run.create_empty(_RUN_ID))

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
        return sorted(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; each id names one reply to pull."""
        ids = []
        for message in messages:
            self._sent += 1
            name = f"message-{self._sent}"
            _set_id(message, name)
            self._pending[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Handle the queued messages among `message_ids`, yielding each reply as it is made."""
        for name in list(message_ids):
            message = self._pending.pop(name, None)
            if message is not None:
                yield self._handle(message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Every reply; nothing here takes longer than its clients, so `timeout` is not needed."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _handle(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        stage = _STAGE_OF.get(message.metadata.message_type)
        fault = self._fault(node, message.metadata.group_id, stage)
        if fault is not None and fault.stage != stage:
            return _unavailable(message)
        self._see(message)
        reply = self._run_client(node, _cross(message))
        if fault is not None:
            return _unavailable(message)  # handled, spent, and never heard of again
        reply = _cross(reply)
        self._see(reply)
        return reply

    def _run_client(self, node: int, message: Message) -> Message:
        TaskIdentity.node_id = node
        context = self._contexts[node]
        try:
            reply = self._client_app(message, context)
        except Exception as error:
            code, reason = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<'{error}'>"
            return Message(Error(code=code, reason=reason), reply_to=message)
        finally:
            TaskIdentity.node_id = SUPERLINK_NODE_ID
        stored = context_to_proto(context).SerializeToString()
        self._contexts[node] = context_from_proto(ProtoContext.FromString(stored))
        _set_id(reply, f"{message.metadata.message_id}-reply")
        return reply

    def _fault(self, node: int, group: str, stage: str | None) -> Fault | None:
        """The fault by which `node` is gone at `stage` of round `group`, if any."""
        if stage is None:
            return None
        place = sorted(self._contexts).index(node)
        for fault in self._faults:
            gone = place < fault.clients and str(fault.round) == group
            if gone and _ORDER.index(fault.stage) <= _ORDER.index(stage):
                return fault
        return None

    def _see(self, message: Message) -> None:
        for tap in self._taps:
            tap(message)


def _cross(message: Message) -> Message:
    """The message as the other side reads it from the wire."""
    return message_from_proto(
        ProtoMessage.FromString(message_to_proto(message).SerializeToString())
    )


def _unavailable(message: Message) -> Message:
    return Message(Error(code=ErrorCode.NODE_UNAVAILABLE), reply_to=message)


def _set_id(message: Message, name: str) -> None:
    # A SuperLink names messages; `Metadata` has no setter for it.
    message.metadata.__dict__["_message_id"] = name
