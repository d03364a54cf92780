"""One client's answer to one message: the same call in this process and in a worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple, cast

from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedattn.errors import ProtocolError, RunError
from fedattn.flower.embedded.contexts import NodeConfig, preserve, revive
from fedattn.flower.embedded.crossing import Packed, pack, unpack


class Answer(NamedTuple):
    """A client's reply, as it left it and as bytes, and its context after it as bytes."""

    reply: Message
    packed: Packed
    context: bytes | None  # None: as it was


def load_app(reference: str) -> ClientApp:
    """The ClientApp at "module:attribute"."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise RunError(f"client app {reference!r}: must be 'module:attribute'")
    return cast(ClientApp, getattr(import_module(module), name))


def answer(
    app: ClientApp, asked: Packed, node: int, config: NodeConfig, stored: bytes, threads: int
) -> Answer:
    """What the client at `node`, of context `stored`, answers to `asked`.

    What it raises, sys.exit too, is an error reply and leaves its context as it was. So is a reply
    that is not to this message from this node, and a reply or a context that has no bytes. It
    computes with `threads` torch threads: how a sum is split over threads decides its last bits.
    """
    message, context = unpack(asked), revive(node, config, stored)
    name = message.metadata.message_id  # before the app has the message, and may change it
    TaskIdentity.node_id = node
    try:
        with _torch_threads(threads):
            reply = app(message, context)
        if (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) != (name, node):
            raise ProtocolError("reply.to", "not a reply to this message from the client asked")
        set_id(reply, f"{name}-reply")
        packed, kept = pack(reply), preserve(context, config)
    except (Exception, SystemExit) as error:
        failed = _error_reply(unpack(asked), error)
        return Answer(failed, pack(failed), None)
    finally:
        TaskIdentity.node_id = SUPERLINK_NODE_ID
    return Answer(reply, packed, None if kept == stored else kept)


def set_id(message: Message, name: str) -> None:
    """Name a message, as a SuperLink does; `Metadata` has no setter for it."""
    message.metadata.__dict__["_message_id"] = name


def _error_reply(message: Message, error: BaseException) -> Message:
    reason = f"{type(error)}:<'{error}'>".encode(errors="replace").decode()  # it crosses as UTF-8
    code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return Message(Error(code=code, reason=reason), reply_to=message)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    torch = sys.modules.get("torch")  # (a client that has yet to import it: OMP_NUM_THREADS)
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
