"""What one secure-aggregation round is about: who takes part, the threshold, the vector."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fedattn.secagg.checks import require
from fedattn.secagg.wire import HASH_BYTES, INDEX_LIMIT, KEY_BYTES, Reader

_FIXED = struct.Struct(">32sQIIIBIII")


@dataclass(frozen=True)
class RoundSpec:
    """The parameters of one round, equal for every member and for the server.

    instruction_hash: 32 bytes, SHA-256 of the one instruction document (computed elsewhere);
        it is in every signature, every key derivation and every seed commitment.
    round: number of the round, for people and error texts.
    roster: (n,) raw Ed25519 public keys; member i (its Shamir x coordinate) owns roster[i - 1].
    threshold: T, the quorum: members needed at every stage, and confirmations of the one global
        survivor list.
    max_colluding: c, the members that may tell the server everything.
    dimension: d, coordinates of each vector.
    modulus_bits: b in 8..32; vectors are added modulo 2^b and travel as uint16 if b <= 16,
        as uint32 otherwise.
    degree: k, the neighbours each member draws for itself; 0 is the complete graph.
    share_threshold: t of a member's k drawn neighbours reconstruct its secrets; 0 in the complete
        graph, where T of all members do.
    is_masked: False in a simulated round that skips keys, shares and masks (`arithmetic.py`); no
        step or state of a masked round takes such a spec, and the other way round.

    Requires 2T > n + c: two quorums of T then share an honest member, so the server cannot
    collect T confirmations of two different survivor lists (Bonawitz et al. 2017, section 6).
    It implies T > c. A roster of one member is allowed and hides nothing: a reference run.
    Whether k and t are secure is for `graph.log2_insecurity` to say; clients ask it.

    Raises ProtocolError("spec.<field>") where a bound does not hold.
    """

    instruction_hash: bytes
    round: int
    roster: tuple[bytes, ...]
    threshold: int
    max_colluding: int
    dimension: int
    modulus_bits: int = 32
    degree: int = 0
    share_threshold: int = 0
    is_masked: bool = True

    def __post_init__(self) -> None:
        n, t, c = len(self.roster), self.threshold, self.max_colluding
        # (1) a short hash would not bind the instruction
        require(len(self.instruction_hash) == HASH_BYTES, "spec.instruction_hash", "need 32 bytes")
        require(0 <= self.round < 1 << 64, "spec.round", "must be in 0..2^64-1")
        # (2) one member many times would be a quorum of one
        require(1 <= n < INDEX_LIMIT, "spec.roster", "must list 1..2^32-2 members")
        require(
            all(len(key) == KEY_BYTES for key in self.roster),
            "spec.roster",
            "every member's key must have 32 bytes",
        )
        require(len(set(self.roster)) == n, "spec.roster", "every member's key must be distinct")
        # (3) two disjoint quorums could unmask two different sums
        require(1 <= t <= n, "spec.threshold", f"is {t}, must be in 1..{n}")
        require(c >= 0, "spec.max_colluding", f"is {c}, must be at least 0")
        require(
            2 * t > n + c,
            "spec.threshold",
            f"is {t}, must satisfy 2t > n + c = {n + c}; use {(n + c) // 2 + 1} or more",
        )
        require(1 <= self.dimension < 1 << 32, "spec.dimension", "must be in 1..2^32-1")
        require(
            8 <= self.modulus_bits <= 32,
            "spec.modulus_bits",
            f"is {self.modulus_bits}, must be in 8..32",
        )
        # (4) one may draw all others, not more; 0 and 0 say that the graph is complete
        k = self.degree
        require(0 <= k < n, "spec.degree", f"is {k}, must be in 0..{n - 1}")
        require(
            min(k, 1) <= self.share_threshold <= k,
            "spec.share_threshold",
            f"is {self.share_threshold}, must be in {min(k, 1)}..{k}",
        )
        # (5) without masks there are no neighbours
        require(self.is_masked or k == 0, "spec.degree", f"is {k}, must be 0 without masks")

    @property
    def recovery_threshold(self) -> int:
        """How many shares reconstruct a secret: t of k holders, T of n in the complete graph."""
        return self.share_threshold if self.degree else self.threshold

    @property
    def members(self) -> range:
        """Every member's index: 1..n."""
        return range(1, len(self.roster) + 1)

    def public_key(self, index: int) -> bytes:
        """The Ed25519 public key of a member; ProtocolError("roster") if there is none."""
        require(
            index in self.members, "roster", f"no member {index}, there are 1..{len(self.roster)}"
        )
        return self.roster[index - 1]

    def to_bytes(self) -> bytes:
        """The fields in their order, then n keys of 32.

        hash 32 | round u64 | T u32 | c u32 | d u32 | bits u8 | k u32 | t u32 | n u32 | keys. Of a
        masked round alone: ProtocolError("masks") otherwise.
        """
        require(self.is_masked, "masks", "a round without masks keeps no spec")
        fixed = _FIXED.pack(
            self.instruction_hash,
            self.round,
            self.threshold,
            self.max_colluding,
            self.dimension,
            self.modulus_bits,
            self.degree,
            self.share_threshold,
            len(self.roster),
        )
        return fixed + b"".join(self.roster)

    @classmethod
    def from_bytes(cls, data: bytes) -> RoundSpec:
        """Inverse of `to_bytes`; ProtocolError("decode") or ("spec.<field>") otherwise."""
        reader = Reader(data)
        hash_, round_, t, c, d, bits, k, share_threshold, n = _FIXED.unpack(
            reader.take(_FIXED.size)
        )
        reader.expect_items(n, KEY_BYTES)
        roster = tuple(reader.take(KEY_BYTES) for _ in range(n))
        reader.finish()
        return cls(hash_, round_, roster, t, c, d, bits, k, share_threshold)
