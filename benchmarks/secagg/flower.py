"""The same round by the functions of Flower's SecAgg+, as its mod and its workflow call them.

A client's stages are `secaggplus_mod`'s own (`_setup`, `_share_keys`, `_collect_masked_vectors`,
`_unmask`), run by `sampled` clients and scaled to the cohort. The server's are the calls of
`SecAggPlusWorkflow` in its order and number, for `sampled` survivors and one dropout, scaled
likewise: every owner costs it the same, and so does every mask. Messages, their serialisation and
waiting are left out, as they are of our side. Ranges and modulus are Flower's defaults;
`num_shares` = n is its complete graph, fewer its circular neighbourhood.
"""

from __future__ import annotations

import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
)
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

T = TypeVar("T")
CLIP, TARGET, MODULUS, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0
STAGES = ("setup", "share_keys", "collect_masked_vectors", "unmask")
_SAMPLED_PEERS = 16  # of a dropout's pairwise masks, at the server


@dataclass
class FlowerCost:
    """CPU seconds of one round; `server` is already scaled to the whole cohort."""

    clients: int
    dropped: int
    num_shares: int
    threshold: int
    sampled_clients: int
    client: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    server: dict[str, float] = field(default_factory=dict)
    upload_bytes: int = 0
    sent_bytes: int = 0
    client_peak: int = 0

    @property
    def client_sum(self) -> float:
        """All clients' CPU, scaled from those sampled."""
        through = dict.fromkeys(STAGES, self.clients) | {"unmask": self.clients - self.dropped}
        return sum(float(np.mean(self.client[stage])) * through[stage] for stage in STAGES)

    @property
    def client_median(self) -> float:
        """One survivor's CPU, by the medians of its stages."""
        return sum(float(np.median(self.client[stage])) for stage in STAGES)

    @property
    def server_sum(self) -> float:
        """The server's CPU, scaled."""
        return sum(self.server.values())


def run(
    clients: int, dim: int, dropped: int, *, num_shares: int, threshold: int, sampled: int
) -> FlowerCost:
    """Measure one round of `clients`, `dropped` of whom vanish as they upload (dim,) numbers."""
    cost = FlowerCost(clients, dropped, num_shares, threshold, sampled)
    neighbours = _neighbourhoods(clients, num_shares)
    lost = {int(i) for i in np.linspace(1, clients, dropped)}  # spread, as its shuffled circle is
    survivors = [i for i in range(1, clients + 1) if i not in lost]
    chosen = [survivors[int(i)] for i in np.linspace(0, len(survivors) - 1, sampled)]
    cost.sampled_clients = len(chosen)
    setup: dict[str, Any] = {
        Key.SAMPLE_NUMBER: clients,
        Key.SHARE_NUMBER: num_shares,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: TARGET,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: MAX_WEIGHT,
    }
    states = {i: SecAggPlusState(nid=i) for i in range(1, clients + 1)}
    public = {}
    for i, state in states.items():
        reply = _timed(cost.client["setup"], lambda s=state: _setup(s, setup))
        public[i] = (reply[Key.PUBLIC_KEY_1], reply[Key.PUBLIC_KEY_2])
    parameters = ndarrays_to_parameters(
        [np.random.default_rng(0).normal(0, 0.1, dim).astype(np.float32)]
    )
    uploads = []
    for i in chosen:
        shown: dict[str, Any] = {str(j): public[j] for j in neighbours[i]}
        shared = _timed(cost.client["share_keys"], lambda i=i, s=shown: _share_keys(states[i], s))
        mailbox = _mailbox(states[i], neighbours[i])
        step = lambda i=i, m=mailbox: _collect_masked_vectors(states[i], m, 100, parameters)  # noqa: E731
        reply = _timed(cost.client["collect_masked_vectors"], step)
        uploads.append(reply[Key.MASKED_PARAMETERS])
        lists = {
            Key.ACTIVE_NODE_ID_LIST: [j for j in neighbours[i] if j in survivors],
            Key.DEAD_NODE_ID_LIST: [j for j in neighbours[i] if j not in survivors],
        }
        revealed = _timed(cost.client["unmask"], lambda i=i, m=lists: _unmask(states[i], m))
    cost.upload_bytes = sum(map(len, uploads[0]))
    shares = (*public[i], *shared[Key.CIPHERTEXT_LIST], *revealed[Key.SHARE_LIST])
    cost.sent_bytes = cost.upload_bytes + sum(map(len, shares))
    _serve(cost, states[chosen[0]], public, neighbours, uploads)
    tracemalloc.start()
    step()
    cost.client_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return cost


def _neighbourhoods(clients: int, num_shares: int) -> dict[int, list[int]]:
    """Flower's circle: every node and num_shares // 2 on either side, or all."""
    half = num_shares >> 1
    return {
        i: sorted({(i - 1 + offset) % clients + 1 for offset in range(-half, half + 1)})
        for i in range(1, clients + 1)
    }


def _mailbox(state: SecAggPlusState, neighbours: list[int]) -> dict[str, Any]:
    """What the neighbours would have sent it; not measured, they are measured at their own."""
    sources = [j for j in neighbours if j != state.nid]
    shares = state.rd_seed_share_dict[state.nid], state.sk1_share_dict[state.nid]
    sealed = [
        encrypt(state.ss2_dict[j], share_keys_plaintext_concat(j, state.nid, *shares))
        for j in sources
    ]
    return {Key.SOURCE_LIST: sources, Key.CIPHERTEXT_LIST: sealed}


def _serve(
    cost: FlowerCost,
    owner: SecAggPlusState,
    public: dict[int, tuple[bytes, bytes]],
    neighbours: dict[int, list[int]],
    uploads: list[list[bytes]],
) -> None:
    n, staying = cost.clients, cost.clients - cost.dropped
    kept = len(neighbours[1]) - round(len(neighbours[1]) * cost.dropped / n)  # shares of a secret
    cpu: dict[str, list[float]] = defaultdict(list)

    # collect_masked_vectors_stage: one vector after the other, then the modulus
    total: Any = None
    for upload in uploads:
        vector = _timed(cpu["read"], lambda u=upload: [bytes_to_ndarray(part) for part in u])
        if total is None:
            total = vector
        else:
            total = _timed(cpu["add"], lambda t=total, v=vector: parameters_addition(t, v))
    if len(uploads) == 1:
        _timed(cpu["add"], lambda: parameters_addition(total, total))
    total = _timed(cpu["mod"], lambda: parameters_mod(total, MODULUS))
    shapes = get_parameters_shape(total)

    # unmask_stage, a survivor: its self seed, one mask
    seed_shares = create_shares(owner.rd_seed, cost.threshold, cost.num_shares)[:kept]
    for _ in range(cost.sampled_clients):
        seed = _timed(cpu["combine_seed"], lambda: combine_shares(seed_shares))
        mask = lambda s=seed: parameters_subtraction(total, pseudo_rand_gen(s, MODULUS, shapes))  # noqa: E731
        _timed(cpu["self_mask"], mask)
        assert seed == owner.rd_seed

    # unmask_stage, a dropout: its private key, one mask for each of its neighbours
    if cost.dropped:
        key_shares = create_shares(owner.sk1, cost.threshold, cost.num_shares)[:kept]
        key = _timed(cpu["combine_key"], lambda: combine_shares(key_shares))
        assert key == owner.sk1
        for j in [j for j in neighbours[owner.nid] if j != owner.nid][:_SAMPLED_PEERS]:
            _timed(
                cpu["pairwise_mask"],
                lambda j=j: parameters_addition(
                    total,
                    pseudo_rand_gen(
                        generate_shared_key(
                            bytes_to_private_key(key), bytes_to_public_key(public[j][0])
                        ),
                        MODULUS,
                        shapes,
                    ),
                ),
            )
    _timed(cpu["decode"], lambda: _decode(total, staying))

    often = {
        "read": staying,
        "add": staying - 1,
        "mod": 1,
        "combine_seed": staying,
        "self_mask": staying,
        "combine_key": cost.dropped,
        "pairwise_mask": cost.dropped * (len(neighbours[1]) - 1),
        "decode": 1,
    }
    cost.server = {
        part: float(np.mean(cpu[part])) * times for part, times in often.items() if times
    }


def _decode(total: list[Any], staying: int) -> list[Any]:
    factor, parameters = factor_extract(parameters_mod(total, MODULUS))
    vectors = dequantize(parameters, CLIP, TARGET)
    for vector in vectors:
        vector += -(staying - 1) * CLIP
        vector *= TARGET / max(int(factor), 1)
    return vectors


def _timed(into: list[float], step: Callable[[], T]) -> T:
    before = time.process_time()
    result = step()
    into.append(time.process_time() - before)
    return result
