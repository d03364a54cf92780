"""A SuperNode without its SuperLink: Flower's own Runtime API, state and tasks, in this process."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any, Self

import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

RUN, NODE = 7, 11


class Node:
    """Serves the Runtime API on loopback for a runner of `folder`, with the folder's secret."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state, self.store = factory.state(), factory.objectstore_factory.store()
        self.state.set_node_id(NODE)
        secret = (folder / "superexec-secret").read_bytes()
        app = create_app(state_factory=factory, superexec_auth_secret=secret)
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (self.folder / "runtime-port").write_text(str(self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def ask(
        self, kind: str, content: RecordDict, bundle: bytes, *, claimed: str | None = None,
        task_type: TaskType = TaskType.CLIENT_APP, **node_config: Any
    ) -> int:  # fmt: skip
        """Store a message as if the SuperLink had sent it with `bundle`; the task's id.

        `claimed` is the hash that the server says the bundle has.
        """
        name = claimed or hashlib.sha256(bundle).hexdigest()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
        message = Message(content, NODE, kind, group_id="1")
        run = Run.create_empty(RUN)
        run.fab_hash, run.fab_id, run.fab_version = name, "fedattn/app", "1.0.0"
        self.state.set_run_series_context(
            run.series_id, Context(RUN, NODE, node_config, RecordDict(), {}, run.series_id)
        )
        self.state.store_run(run)
        if claimed is None:
            self.state.store_fab(Fab(name, bundle, {}))
        else:  # as a SuperNode that believes the server; Flower's compares, too
            self.state.fab_store[name] = Fab(name, bundle, {})  # type: ignore[attr-defined]
        task = self.state.create_task(task_type=task_type, run_id=RUN, fab_hash=name)
        assert task is not None
        _insert_message(message, self.state, self.store)
        return task

    def reply(self, timeout_s: float = 30.0) -> Message:
        """The reply that the SuperNode would send on, with its content."""
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        deadline = time.monotonic() + timeout_s
        while not (found := self.state.get_messages_legacy(is_reply=True)):
            assert time.monotonic() < deadline, "no reply"
            time.sleep(0.02)
        name = found[0].metadata.message_id
        tree = self.store.get_object_tree(name)
        contents: dict[str, bytes] = {}
        for each in iterate_object_tree(tree):
            while not (content := self.store.get(each.object_id)):
                assert time.monotonic() < deadline, "no content"
                time.sleep(0.02)
            contents[each.object_id] = content
        message = inflate_object_from_contents(name, contents)
        assert isinstance(message, Message)
        return message
