"""One of our rounds, every message real, with the CPU of each step on each side.

In a large cohort only `sampled` clients are measured. The others take two short cuts that no byte
of their messages' sizes shows: they verify no signatures, and they upload without masks (unless
`all_mask`), so that the server's work and memory are those of a full round while its sum means
nothing and is not compared.
"""

from __future__ import annotations

import contextlib
import math
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.secagg.server_process import ServerProcess
from benchmarks.secagg.sizes import STATEMENT, Sizes, identities
from fedattn.randomness import Randomness
from fedattn.secagg import client, graph, shown, wire
from fedattn.update import Codec

STAGES = ("advertise", "share", "encode", "upload", "confirm", "unmask")


@dataclass
class Cost:
    """What a round cost: CPU seconds, bytes on the wire, bytes of memory."""

    sizes: Sizes
    client: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    server: dict[str, float] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)  # by each survivor
    received: list[int] = field(default_factory=list)
    upload_bytes: int = 0
    sampled_clients: int = 0
    neighbours: float = 0.0
    is_exact: bool | None = None  # None: not every client masked, nothing to compare
    memory: dict[str, int] = field(default_factory=dict)
    client_peak: int = 0

    @property
    def client_sum(self) -> float:
        """All clients' CPU: the mean of a stage times those who went through it.

        Whoever drops out has masked a vector that never arrived.
        """
        n, staying = self.sizes.clients, self.sizes.clients - self.sizes.dropped
        through = dict.fromkeys(STAGES, n) | {"confirm": staying, "unmask": staying}
        return sum(float(np.mean(self.client[stage])) * through[stage] for stage in STAGES)

    @property
    def client_median(self) -> float:
        """One survivor's CPU, by the medians of its stages."""
        return sum(float(np.median(self.client[stage])) for stage in STAGES)

    @property
    def server_sum(self) -> float:
        """The server's CPU."""
        return sum(self.server.values())

    @property
    def server_peak_vectors(self) -> float:
        """The server's peak over what it held when the shares were in, in masked vectors."""
        return (self.memory["peak"] - self.memory["before_uploads"]) / self.memory["vector"]


def run(
    sizes: Sizes, sampled: int | None = None, *, all_mask: bool = False, any_security: bool = False
) -> Cost:
    """One round; of the last `sizes.dropped` clients nothing arrives from the upload on.

    `any_security` lets clients take part in a graph they would decline, to fit costs.
    """
    least = {"min_security_bits": -math.inf} if any_security else {}
    spec, keys = sizes.spec(), identities(sizes.clients)
    codec = Codec(sizes.clip_range, sizes.grid_scale, sizes.bits)
    survivors = range(1, sizes.clients - sizes.dropped + 1)
    measured = set(spec.members)
    if sampled is not None and sampled < len(survivors):
        measured = {int(i) for i in np.linspace(1, len(survivors), sampled)}
    cost = Cost(sizes, sampled_clients=len(measured.intersection(survivors)))
    cost.is_exact = None if len(measured) < sizes.clients and not all_mask else False
    sent: dict[int, int] = defaultdict(int)
    received: dict[int, int] = defaultdict(int)
    delta = np.random.default_rng(0).normal(0, 0.1, sizes.dim).astype(np.float32)
    expected = np.zeros(sizes.dim, np.uint32)
    states: dict[int, Any] = {}

    def take(stage: str, i: int, op: str, seen: bytes, step: Callable[..., Any]) -> None:
        """Client i's step on what it is seen; its reply goes to the server."""
        with contextlib.nullcontext() if i in measured else _short_cuts(all_mask):
            before = time.process_time()
            states[i], message = step()
            if i in measured:
                cost.client[stage].append(time.process_time() - before)
        sent[i] += len(message)
        received[i] += len(seen)
        if stage == "upload":
            cost.upload_bytes = len(message)
        server.call(op, i, message)

    with ServerProcess(spec, codec) as server:
        for i in spec.members:
            graph.log2_insecurity.cache_clear()  # each device computes it for itself
            step = partial(client.advertise, spec, i, keys[i], _os(), **least)
            take("advertise", i, "advertised", b"", step)
        for i in spec.members:
            seen = server.call("key_list", i)
            take("share", i, "shared", seen, partial(client.share, states[i], keys[i], seen, _os()))
        cost.neighbours = float(np.mean([len(state.peers) for state in states.values()]))
        example = words = None
        for i in survivors:
            seen = server.call("mailbox", i)
            if words is None or i in measured:
                before = time.process_time()
                words = codec.encode(delta, _os())
                cost.client["encode"].append(time.process_time() - before)
                example = (states[i], keys[i], seen)
            take(
                "upload",
                i,
                "uploaded",
                seen,
                partial(client.upload, states[i], keys[i], seen, words),
            )
            expected += words
        seen = server.call("survivors")
        for i in survivors:
            take(
                "confirm",
                i,
                "confirmed",
                seen,
                partial(client.confirm, states[i], keys[i], seen, STATEMENT),
            )
        for i in survivors:
            seen = server.call("confirmations", i)
            take("unmask", i, "revealed", seen, partial(client.unmask, states[i], keys[i], seen))
        total = server.total(exact=cost.is_exact is not None)
        if cost.is_exact is not None:
            cost.is_exact = bool(np.array_equal(total, expected & np.uint32(2**sizes.bits - 1)))
        cost.memory = server.report()
    cost.server = cost.memory.pop("cpu")
    cost.sent, cost.received = [sent[i] for i in survivors], [received[i] for i in survivors]
    assert example is not None
    cost.client_peak = _peak(lambda: client.upload(*example, codec.encode(delta, _os())))
    return cost


def _os() -> Randomness:
    return Randomness.from_os()


@contextlib.contextmanager
def _short_cuts(all_mask: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name in (
            (wire, "verify"),
            (shown, "verify_confirmation"),
            (shown, "verify_notice"),
        ):
            stack.enter_context(mock.patch.object(module, name, return_value=True))
        if not all_mask:
            stack.enter_context(mock.patch.object(client, "add_masks", return_value=None))
        yield


def _peak(step: Callable[[], object]) -> int:
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
