"""What is measured: the cohort, the vector, the graph, and identity keys for all members."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

from fedattn.randomness import Randomness
from fedattn.secagg import RoundSpec, graph
from fedattn.signing import SigningKey

STATEMENT = hashlib.sha256(b"ledger intent").digest()
_INSTRUCTION = hashlib.sha256(b"instruction").digest()


@dataclass(frozen=True)
class Sizes:
    """A cohort of `clients`; nothing arrives of `dropped` of them from the upload on.

    dim: coordinates of a vector; bits: b of the modulus 2^b; threshold: the quorum T; colluding: c;
    degree, share_threshold: the drawn neighbours k and the shares t that reconstruct, or 0 and 0.
    """

    clients: int
    dim: int
    dropped: int
    threshold: int
    colluding: int
    degree: int = 0
    share_threshold: int = 0
    bits: int = 32
    clip_range: float = 0.5

    @classmethod
    def of(cls, clients: int, dim: int, dropout: float, colluding: float) -> Self:
        """The least quorum, and the graph that `graph.parameters` chooses for these shares."""
        c, dropped = graph.members_of(clients, colluding), graph.members_of(clients, dropout)
        quorum = graph.smallest_quorum(clients, c)
        degree, enough = graph.parameters(clients, colluding, dropout, quorum=quorum)
        return cls(clients, dim, dropped, quorum, c, degree, enough if degree else 0)

    def at(self, dim: int, bits: int = 32) -> Sizes:
        """The same cohort with another vector."""
        return replace(self, dim=dim, bits=bits)

    @property
    def masks(self) -> float:
        """Pairwise masks of one client, expected."""
        return graph.expected_neighbours(self.clients, self.degree)

    @property
    def grid_scale(self) -> float:
        """The finest grid whose sum fits the modulus."""
        return ((2 ** (self.bits - 1) - 1) // self.clients - 1) / self.clip_range

    def spec(self) -> RoundSpec:
        """The round of these sizes."""
        roster = tuple(key.public_bytes for key in identities(self.clients).values())
        return RoundSpec(
            _INSTRUCTION,
            1,
            roster,
            self.threshold,
            self.colluding,
            self.dim,
            self.bits,
            self.degree,
            self.share_threshold,
        )


_IDENTITIES: dict[int, SigningKey] = {}


def identities(n: int) -> dict[int, SigningKey]:
    """Members 1..n's identity keys, made once: they outlive a round, so nobody's cost."""
    for i in range(len(_IDENTITIES) + 1, n + 1):
        _IDENTITIES[i] = SigningKey.generate(Randomness.seeded(0, "identity", str(i)))
    return {i: _IDENTITIES[i] for i in range(1, n + 1)}
