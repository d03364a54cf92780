"""One client's answer to one message: the same call in this process and in a worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import cast

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedattn.errors import RunError


def load_app(reference: str) -> ClientApp:
    """The ClientApp at "module:attribute"."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise RunError(f"client app {reference!r}: must be 'module:attribute'")
    return cast(ClientApp, getattr(import_module(module), name))


def answer(
    app: ClientApp, message: Message, context: Context, threads: int
) -> tuple[Message, bool]:
    """The client's reply, and whether it ran to its end; what it raises is an error reply.

    It computes with `threads` torch threads: how a sum is split over threads decides its last
    bits. `context` is left as the client leaves it.
    """
    TaskIdentity.node_id = context.node_id
    try:
        with _torch_threads(threads):
            reply = app(message, context)
        set_id(reply, f"{message.metadata.message_id}-reply")
    except Exception as error:
        code, reason = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<'{error}'>"
        return Message(Error(code=code, reason=reason), reply_to=message), False
    finally:
        TaskIdentity.node_id = SUPERLINK_NODE_ID
    return reply, True


def set_id(message: Message, name: str) -> None:
    """Name a message, as a SuperLink does; `Metadata` has no setter for it."""
    message.metadata.__dict__["_message_id"] = name


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
