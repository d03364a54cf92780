"""A whole round in memory, with every state and message kept, so that tests can alter any."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg import ClientState, RoundSpec, client, server
from fedattn.secagg.uploads import Uploads
from fedattn.secagg.wire import Stage
from fedattn.signing import SigningKey

STATEMENT = hashlib.sha256(b"ledger intent").digest()
INSTRUCTION = hashlib.sha256(b"instruction").digest()


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def identities(n: int, seed: int = 0) -> list[SigningKey]:
    return [SigningKey.generate(Randomness.seeded(seed, "identity", str(i))) for i in range(n)]


def make_spec(
    n=4, t=3, c=0, d=5, bits=32, seed=0, instruction=INSTRUCTION, degree=0, share_threshold=0
) -> RoundSpec:
    roster = tuple(key.public_bytes for key in identities(n, seed))
    return RoundSpec(instruction, 7, roster, t, c, d, bits, degree, share_threshold)


class Trusting(Uploads):
    """Uploads of a server that does not check notices."""

    def require_notice(self, *_):
        pass


@dataclass
class Round:
    """Runs stage by stage; `gone[stage]` are members whose message of that stage never arrives.

    A client that refuses a step fails the test, or with `tolerant` leaves the round (`refused`).
    """

    spec: RoundSpec
    vectors: Mapping[int, np.ndarray] | None = None
    gone: Mapping[Stage, set[int]] = field(default_factory=dict)
    seed: int = 0
    serialise: bool = False
    tolerant: bool = False

    def __post_init__(self):
        n, d, bits = len(self.spec.roster), self.spec.dimension, self.spec.modulus_bits
        self.keys = dict(enumerate(identities(n, self.seed), 1))
        if self.vectors is None:
            rng = np.random.default_rng(self.seed)
            self.vectors = {i: rng.integers(0, 2**bits, d, np.uint32) for i in self.spec.members}
        self.server = server.ServerRound(self.spec)
        self.refused: dict[int, str] = {}  # by whom: the check
        self.states: dict[tuple[Stage, int], ClientState] = {}  # the state *before* a stage
        self.sent: dict[tuple[Stage, int], bytes] = {}
        self.key_lists: dict[int, bytes] = {}
        self.mailboxes: dict[int, bytes] = {}
        self.confirmation_lists: dict[int, bytes] = {}
        self.key_list = self.survivors = self.confirmations = b""  # the same for all, if complete

    def _rng(self, index: int, stage: str) -> Randomness:
        return Randomness.seeded(self.seed, "client", str(index), stage)

    def _keep(
        self, stage: Stage, index: int, step: Callable[[], tuple[ClientState, bytes]]
    ) -> bool:
        try:
            state, message = step()
        except ProtocolError as error:
            if not self.tolerant:
                raise
            self.refused[index] = error.check
            return False
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
            rng = self._rng(i, "advertise")
            step = partial(client.advertise, self.spec, i, self.keys[i], rng, min_security_bits=0)
            if self._keep(Stage.ADVERTISE, i, step):
                self.server.advertised(i, self.sent[Stage.ADVERTISE, i])
        return self

    def share(self):
        if not self.spec.degree:
            self.key_list = self.server.key_list()
        for i in self.server.advertisers:
            self.key_lists[i] = self.server.key_list(i)
            state = self.state(Stage.SHARE, i)
            rng = self._rng(i, "share")
            step = partial(client.share, state, self.keys[i], self.key_lists[i], rng)
            if self._keep(Stage.SHARE, i, step):
                self.server.shared(i, self.sent[Stage.SHARE, i])
        return self

    def upload(self):
        for i in self.server.sharers:
            self.mailboxes[i] = self.server.mailbox(i)
            state, vector = self.state(Stage.UPLOAD, i), self.vectors[i]
            step = partial(client.upload, state, self.keys[i], self.mailboxes[i], vector)
            if self._keep(Stage.UPLOAD, i, step):
                self.server.uploaded(i, self.sent[Stage.UPLOAD, i])
        return self

    def confirm(self):
        self.survivors = self.server.survivors()
        for i in self.server.survivor_indices:
            state = self.state(Stage.CONFIRM, i)
            step = partial(client.confirm, state, self.keys[i], self.survivors, STATEMENT)
            if self._keep(Stage.CONFIRM, i, step):
                self.server.confirmed(i, self.sent[Stage.CONFIRM, i], STATEMENT)
        return self

    def unmask(self):
        if not self.spec.degree:
            self.confirmations = self.server.confirmations()
        for i in self.server.confirmation_signatures:
            shown = self.confirmation_lists[i] = self.server.confirmations(i)
            step = partial(client.unmask, self.state(Stage.UNMASK, i), self.keys[i], shown)
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
