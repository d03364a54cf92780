"""A whole round in memory, with every state and message kept, so that tests can alter any."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedattn.randomness import Randomness
from fedattn.secagg import ClientState, RoundSpec, client, server
from fedattn.secagg.wire import Stage
from fedattn.signing import SigningKey

STATEMENT = hashlib.sha256(b"ledger intent").digest()
INSTRUCTION = hashlib.sha256(b"instruction").digest()


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def identities(n: int, seed: int = 0) -> list[SigningKey]:
    return [SigningKey.generate(Randomness.seeded(seed, "identity", str(i))) for i in range(n)]


def make_spec(n=4, t=3, c=0, d=5, bits=32, seed=0, instruction=INSTRUCTION) -> RoundSpec:
    roster = tuple(key.public_bytes for key in identities(n, seed))
    return RoundSpec(instruction, 7, roster, t, c, d, bits)


@dataclass
class Round:
    """Runs stage by stage; `gone[stage]` are members whose message of that stage never arrives."""

    spec: RoundSpec
    vectors: Mapping[int, np.ndarray] | None = None
    gone: Mapping[Stage, set[int]] = field(default_factory=dict)
    seed: int = 0
    serialise: bool = False

    def __post_init__(self):
        n, d, bits = len(self.spec.roster), self.spec.dimension, self.spec.modulus_bits
        self.keys = dict(enumerate(identities(n, self.seed), 1))
        if self.vectors is None:
            rng = np.random.default_rng(self.seed)
            self.vectors = {i: rng.integers(0, 2**bits, d, np.uint32) for i in self.spec.members}
        self.server = server.ServerRound(self.spec)
        self.states: dict[tuple[Stage, int], ClientState] = {}  # the state *before* a stage
        self.sent: dict[tuple[Stage, int], bytes] = {}
        self.mailboxes: dict[int, bytes] = {}
        self.key_list = self.survivors = self.confirmations = b""

    def _rng(self, index: int, stage: str) -> Randomness:
        return Randomness.seeded(self.seed, "client", str(index), stage)

    def _keep(self, stage: Stage, index: int, step: tuple[ClientState, bytes]) -> bool:
        state, message = step
        if self.serialise:
            copy = ClientState.from_bytes(state.to_bytes())
            assert copy == state
            state = copy
        self.states[Stage(stage + 1), index] = state
        self.sent[stage, index] = message
        return not any(index in self.gone.get(s, ()) for s in Stage if s <= stage)

    def state(self, stage: Stage, index: int) -> ClientState:
        return self.states[stage, index]

    def advertise(self):
        for i in self.spec.members:
            step = client.advertise(self.spec, i, self.keys[i], self._rng(i, "advertise"))
            if self._keep(Stage.ADVERTISE, i, step):
                self.server.advertised(i, self.sent[Stage.ADVERTISE, i])
        return self

    def share(self):
        self.key_list = self.server.key_list()
        for i in self.server.advertisers:
            state = self.state(Stage.SHARE, i)
            step = client.share(state, self.keys[i], self.key_list, self._rng(i, "share"))
            if self._keep(Stage.SHARE, i, step):
                self.server.shared(i, self.sent[Stage.SHARE, i])
        return self

    def upload(self):
        for i in self.server.sharers:
            self.mailboxes[i] = self.server.mailbox(i)
            state, vector = self.state(Stage.UPLOAD, i), self.vectors[i]
            step = client.upload(state, self.keys[i], self.mailboxes[i], vector)
            if self._keep(Stage.UPLOAD, i, step):
                self.server.uploaded(i, self.sent[Stage.UPLOAD, i])
        return self

    def confirm(self):
        self.survivors = self.server.survivors()
        for i in self.server.survivor_indices:
            state = self.state(Stage.CONFIRM, i)
            step = client.confirm(state, self.keys[i], self.survivors, STATEMENT)
            if self._keep(Stage.CONFIRM, i, step):
                self.server.confirmed(i, self.sent[Stage.CONFIRM, i], STATEMENT)
        return self

    def unmask(self):
        self.confirmations = self.server.confirmations()
        for i in self.server.confirmation_signatures:
            step = client.unmask(self.state(Stage.UNMASK, i), self.keys[i], self.confirmations)
            if self._keep(Stage.UNMASK, i, step):
                self.server.revealed(i, self.sent[Stage.UNMASK, i])
        return self

    def until(self, stage: Stage) -> Round:
        """Every stage before `stage`."""
        steps = [self.advertise, self.share, self.upload, self.confirm, self.unmask]
        for step in steps[: stage - 1]:
            step()
        return self

    def run(self) -> np.ndarray:
        self.until(Stage.DONE)
        return self.server.total()

    def plain_sum(self, members) -> np.ndarray:
        total = np.zeros(self.spec.dimension, np.uint64)
        for i in members:
            total += self.vectors[i]
        return (total % (1 << self.spec.modulus_bits)).astype(np.uint32)
