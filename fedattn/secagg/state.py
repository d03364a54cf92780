"""What a client remembers between two messages of a round, and nothing longer than needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedattn.secagg.checks import require
from fedattn.secagg.shamir import SHARE_BYTES, decode_share, encode_share
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.wire import KEY_BYTES, Reader, Stage, blob, index_list, number

_VERSION = 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Peer:
    """Another member's verified public keys of this round, and whether it drew us.

    Who drew us sends us its shares; in the complete graph everybody does.
    """

    index: int
    mask_key: bytes
    transport_key: bytes
    drew_us: bool = True


@dataclass(frozen=True, repr=False)
class HeldShares:
    """This client's share of both secrets of `owner`; it will reveal one of them, or neither."""

    owner: int
    seed_share: int
    key_share: int

    def __repr__(self) -> str:
        return f"HeldShares(owner={self.owner}, shares=<omitted>)"


@dataclass(frozen=True, repr=False)
class ClientState:
    """A client's state before `next_stage`; frozen: each step returns a new one.

    `drawn` are the members this client drew itself; none in the complete graph. `sharers` are those
    it masked with, and itself: in a sparse graph its neighbours alone.

    The three secrets are empty once the masked vector is made, the held shares once they are
    revealed. Whoever keeps states must keep only the newest and store it *before* the step's
    message leaves: a stage is refused twice by the new state, not by an old copy.
    """

    spec: RoundSpec
    index: int
    next_stage: Stage
    advertisement: bytes = b""
    mask_secret: bytes = b""
    transport_secret: bytes = b""
    self_seed: bytes = b""
    drawn: tuple[int, ...] = ()
    peers: tuple[Peer, ...] = ()
    held: tuple[HeldShares, ...] = ()
    sharers: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    statement: bytes = b""

    def __repr__(self) -> str:
        stage = self.next_stage.name.lower()
        return (
            f"ClientState(round={self.spec.round}, index={self.index}, next_stage={stage}, "
            "secrets=<omitted>)"
        )

    def to_bytes(self) -> bytes:
        """Holds secrets: store it as one would a private key.

        version u8 = 1 | next stage u8 | index u32 | then, each length-prefixed: spec,
        advertisement, mask secret, transport secret, self seed, statement | peers: count u32, each
        index u32, two keys of 32, drew us u8 | held: count u32, each owner u32, two shares of 33 |
        drawn: list | sharers: list | survivors: list.
        """
        blobs = (
            self.spec.to_bytes(),
            self.advertisement,
            self.mask_secret,
            self.transport_secret,
            self.self_seed,
            self.statement,
        )
        peers = [
            number(peer.index) + peer.mask_key + peer.transport_key + number(peer.drew_us, 1)
            for peer in self.peers
        ]
        held = [
            number(h.owner) + encode_share(h.seed_share) + encode_share(h.key_share)
            for h in self.held
        ]
        return b"".join(
            (
                number(_VERSION, 1) + number(self.next_stage, 1) + number(self.index),
                *map(blob, blobs),
                number(len(peers)),
                *peers,
                number(len(held)),
                *held,
                index_list(self.drawn),
                index_list(self.sharers),
                index_list(self.survivors),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientState:
        """Inverse of `to_bytes`; ProtocolError("decode") or ("spec.<field>") otherwise."""
        reader = Reader(data)
        require(reader.number(1) == _VERSION, "decode", "client state of another version")
        stage = reader.number(1)
        require(stage in range(Stage.SHARE, Stage.DONE + 1), "decode", "no such stage")
        index = reader.number(4)
        spec = RoundSpec.from_bytes(reader.blob())
        advertisement, mask, transport, seed, statement = (reader.blob() for _ in range(5))
        peers = _items(
            reader,
            4 + 2 * KEY_BYTES + 1,
            lambda: Peer(
                reader.number(4), reader.take(KEY_BYTES), reader.take(KEY_BYTES), _flag(reader)
            ),
        )
        held = _items(
            reader,
            4 + 2 * SHARE_BYTES,
            lambda: HeldShares(reader.number(4), _share(reader), _share(reader)),
        )
        drawn, sharers, survivors = reader.indices(), reader.indices(), reader.indices()
        reader.finish()
        return cls(
            spec,
            index,
            Stage(stage),
            advertisement,
            mask,
            transport,
            seed,
            drawn,
            peers,
            held,
            sharers,
            survivors,
            statement,
        )


def indices_of(peers: Sequence[Peer]) -> tuple[int, ...]:
    """The members' indices."""
    return tuple(peer.index for peer in peers)


def _items(reader: Reader, item_bytes: int, read: Callable[[], _T]) -> tuple[_T, ...]:
    return tuple(read() for _ in range(reader.count(item_bytes)))


def _flag(reader: Reader) -> bool:
    value = reader.number(1)
    require(value <= 1, "decode", "a flag must be 0 or 1")
    return value == 1


def _share(reader: Reader) -> int:
    return decode_share(reader.take(SHARE_BYTES))
