"""What the engine keeps of its clients: their configs, asked for when needed, and their states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping

from flwr.app import Context, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext

RUN_ID = 1
NodeConfig = Mapping[str, str | int]


class LazyNodes(Mapping[int, NodeConfig]):
    """Nodes `ids`, whose configs `config` makes when they are looked at: none is kept.

    >>> nodes = LazyNodes(range(100, 100_100), lambda node: {"partition-id": node - 100})
    >>> len(nodes), nodes[107]
    (100000, {'partition-id': 7})
    """

    def __init__(self, ids: range, config: Callable[[int], NodeConfig]) -> None:
        self.ids, self._config = ids, config

    def __getitem__(self, node: int) -> NodeConfig:
        if node not in self.ids:
            raise KeyError(node)
        return self._config(node)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, node: object) -> bool:
        return node in self.ids


class Contexts(MutableMapping[int, Context]):
    """Every node's context: as bytes, and of those alone whose context is not a fresh one.

    So what a client keeps crosses as bytes after each of its messages, and memory grows with the
    clients that hold a state, not with the population. A context taken out is a copy.
    """

    def __init__(self, nodes: Mapping[int, NodeConfig]) -> None:
        self._nodes = nodes
        self._stored: dict[int, bytes] = {}

    def stored(self, node: int) -> bytes:
        """The context as bytes, or none: it is a fresh one (`revive`)."""
        return self._stored.get(node, b"")

    def config(self, node: int) -> dict[str, str | int]:
        """The node's config."""
        return dict(self._nodes[node])

    def keep(self, node: int, stored: bytes) -> None:
        """Keep the context of those bytes (`preserve`)."""
        if stored:
            self._stored[node] = stored
        else:
            self._stored.pop(node, None)

    @property
    def held(self) -> int:
        """How many contexts take memory."""
        return len(self._stored)

    def __getitem__(self, node: int) -> Context:
        return revive(node, self.config(node), self.stored(node))

    def __setitem__(self, node: int, context: Context) -> None:
        self.keep(node, preserve(context, self.config(node)))

    def __delitem__(self, node: int) -> None:
        raise TypeError("a node has a context as long as the engine is there")

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def revive(node: int, config: NodeConfig, stored: bytes) -> Context:
    """The context of those bytes; of no bytes, a fresh one."""
    if stored:
        return context_from_proto(ProtoContext.FromString(stored))
    return Context(RUN_ID, node, dict(config), RecordDict(), {})


def preserve(context: Context, config: NodeConfig) -> bytes:
    """The context as bytes, none of a fresh one; equal bytes for equal contexts."""
    if not context.state and not context.run_config and context.node_config == config:
        return b""
    stored: bytes = context_to_proto(context).SerializeToString(deterministic=True)
    return stored
