"""One message to one device in a fresh interpreter: `python -m tests.flower.cold FOLDER`.

FOLDER holds `message` and `context` as protobuf bytes; the reply and the new context are written
beside them, and `modules` lists all that was imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context, Message
from flwr.supercore.task_identity import TaskIdentity

from fedattn.flower.client_app import app


def main(folder: Path) -> None:
    """Let the ClientApp answer."""
    message = message_from_proto(Message.FromString((folder / "message").read_bytes()))
    context = context_from_proto(Context.FromString((folder / "context").read_bytes()))
    TaskIdentity.task_id, TaskIdentity.run_id = 1, context.run_id
    TaskIdentity.node_id = context.node_id
    reply = app(message, context)
    (folder / "reply").write_bytes(message_to_proto(reply).SerializeToString())
    (folder / "context").write_bytes(context_to_proto(context).SerializeToString())
    (folder / "modules").write_text("\n".join(sys.modules))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
