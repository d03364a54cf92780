"""What a client believes of the server's messages: every check of what it is shown, by stage.

The server is the adversary. In the complete graph a client sees every member at every stage. In a
sparse one it sees its neighbourhood, until the one global survivor list; there a lying server can

- hide who drew us, or invent neighbours out of colluding members: that changes masks beside those
  of our own draws; hidden edges leave masks that do not cancel, a useless sum, never an open one;
- hide members we drew, as if they were lost: with fewer than t left we stop, and if one of them
  then survives, we stop too.

What a member reveals of another's self seed, it reveals because the other signed that it masked
with it (a notice, see `confirmation.py`): what the bound in `graph.py` rests on.

Every check raises ProtocolError by name; texts hold bounds and indices.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedattn.errors import ProtocolError
from fedattn.secagg import keys, messages, shamir, wire
from fedattn.secagg.checks import is_ascending, require, require_drawn, require_members
from fedattn.secagg.confirmation import survivors_sha256, verify_confirmation, verify_notice
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.state import ClientState, HeldShares, Peer, indices_of
from fedattn.secagg.wire import EVERYONE, Stage, open_server, open_signed


def read_advertisement(spec: RoundSpec, index: int, message: bytes) -> messages.Advertisement:
    """What member `index` advertises, verified; client and server check alike.

    Raises ProtocolError("decode" | "message.*" | "roster" | "keys.point" | "keys.neighbours").
    """
    advertisement = messages.Advertisement.decode(
        open_signed(spec, message, Stage.ADVERTISE, index)
    )
    keys.require_usable(advertisement.mask_key, index)
    keys.require_usable(advertisement.transport_key, index)
    drawn = advertisement.out_neighbours
    require(
        len(drawn) == spec.degree
        and is_ascending(drawn)
        and all(member in spec.members and member != index for member in drawn),
        "keys.neighbours",
        f"member {index}: must draw {spec.degree} other members, in ascending order",
    )
    return advertisement


def read_key_list(state: ClientState, message: bytes) -> tuple[Peer, ...]:
    """The verified keys of every other member that we may mask with (U1).

    Raises ProtocolError("decode" | "message.*" | "keys.*").
    """
    spec, index = state.spec, state.index
    body = open_server(spec, message, Stage.SHARE, index if spec.degree else EVERYONE)
    relayed = messages.KeyList.decode(body).advertisements
    senders = [wire.sender(advertisement) for advertisement in relayed]
    # (1) size, distinct members of the roster, ourselves among them
    _require_seen("keys", state, senders, spec.members)
    # (2) with other bytes under our name, our peers would mask with a key we do not hold
    own = relayed[senders.index(index)]
    require(own == state.advertisement, "keys.own", f"member {index}: not what it advertised")
    # (3) every key signed by its member, for this instruction and stage
    shown = [read_advertisement(spec, s, m) for s, m in zip(senders, relayed, strict=True)]
    # (4) a key that serves two members or two purposes
    drawn = [key for other in shown for key in (other.mask_key, other.transport_key)]
    require(len(set(drawn)) == len(drawn), "keys.repeated", "a key is advertised twice")
    peers = tuple(
        Peer(
            sender,
            other.mask_key,
            other.transport_key,
            not spec.degree or index in other.out_neighbours,
        )
        for sender, other in zip(senders, shown, strict=True)
        if sender != index
    )
    # (5) a neighbour that neither drew us nor was drawn by us is the server's choice
    for peer in peers:
        require(
            peer.drew_us or peer.index in state.drawn,
            "keys.edge",
            f"member {peer.index} is no neighbour: neither drew the other",
        )
    return peers


def read_mailbox(
    state: ClientState, message: bytes
) -> tuple[tuple[int, ...], list[Peer], list[HeldShares]]:
    """(sharers (U2), the peers to mask with, the shares in their packets).

    Raises ProtocolError("decode" | "message.*" | "mailbox.*").
    """
    spec, index = state.spec, state.index
    body = messages.Mailbox.decode(open_server(spec, message, Stage.UPLOAD, index))
    # (1) size, distinct members whose keys we checked, ourselves among them
    _require_seen("mailbox", state, body.sharers, (index, *indices_of(state.peers)))
    # (2) a sharer without its packet, or a packet without a sharer, is the server's doing
    sharers = frozenset(body.sharers)
    peers = [peer for peer in state.peers if peer.index in sharers]
    senders = [peer for peer in peers if peer.drew_us]
    require(
        tuple(sender for sender, _ in body.packets) == indices_of(senders),
        "mailbox.packets",
        "must hold one packet from every other sharer that drew us, in ascending order",
    )
    private = keys.load(state.transport_secret)
    opened = [
        _open_packet(state, private, peer, packet)
        for peer, (_, packet) in zip(senders, body.packets, strict=True)
    ]
    held = [shares for shares in opened if shares is not None]
    # (3) fewer proven sharers than T: the others may be the server's invention
    require(
        bool(spec.degree) or len(held) + 1 >= spec.threshold,
        "mailbox.proven",
        f"{len(held) + 1} sharers' packets open, need {spec.threshold}",
    )
    return body.sharers, peers, held


def read_survivors(state: ClientState, message: bytes) -> tuple[int, ...]:
    """The one survivor list of the round (U3).

    Raises ProtocolError("decode" | "message.*" | "survivors.*").
    """
    spec = state.spec
    body = open_server(spec, message, Stage.CONFIRM, EVERYONE)
    listed = messages.SurvivorList.decode(body).survivors
    # (1) size, distinct members that shared, ourselves among them. Dropouts are the sharers that
    # are not listed, so no member can be both
    require_members(
        "survivors",
        listed,
        within=spec.members if spec.degree else state.sharers,
        threshold=spec.threshold,
        itself=state.index,
    )
    if spec.degree:
        # (2) who was said to be lost, so that we did not mask with it, cannot survive
        for member in frozenset(state.drawn).intersection(listed).difference(state.sharers):
            require(False, "survivors.hidden", f"member {member} was hidden from us before")
        # (3) of those that hold our shares, t survive
        require_drawn("survivors", listed, drawn=state.drawn, share_threshold=spec.share_threshold)
    return listed


def require_confirmations(state: ClientState, message: bytes) -> None:
    """T distinct survivors signed our survivor list and our statement (U4).

    And, in a sparse graph, every survivor whose shares we hold signed that it masked with us.
    Raises ProtocolError("decode" | "message.*" | "confirmations.*" | "notices.*").
    """
    spec, index = state.spec, state.index
    body = messages.ConfirmationList.decode(
        open_server(spec, message, Stage.UNMASK, index if spec.degree else EVERYONE)
    )
    # (1) another survivor list would open a survivor's mask key, or a dropout's self seed
    expected = survivors_sha256(state.survivors)
    require(body.survivors_sha256 == expected, "confirmations.survivors", "of another list")
    # (2) another statement would tie our signature to another ledger entry
    require(body.statement == state.statement, "confirmations.statement", "of another statement")
    # (3) size, distinct survivors, ourselves among them
    require_members(
        "confirmations",
        [signer for signer, _ in body.signatures],
        within=state.survivors,
        threshold=spec.threshold,
        itself=index,
    )
    # (4) T real signatures: with 2T > n + c no other list can have as many
    for signer, signature in body.signatures:
        require(
            verify_confirmation(
                spec.public_key(signer), spec.instruction_hash, expected, state.statement, signature
            ),
            "confirmations.signature",
            f"not signed by member {signer}",
        )
    if spec.degree:
        _require_notices(state, body.notices)


def _require_notices(state: ClientState, notices: Sequence[messages.Notice]) -> None:
    spec, by_owner = state.spec, {notice.owner: notice for notice in notices}
    for owner in frozenset(state.survivors).intersection(held.owner for held in state.held):
        # (5) without its notice we do not know that its vector holds a mask shared with us
        require(owner in by_owner, "notices.missing", f"none of member {owner}")
        notice = by_owner[owner]
        require(
            verify_notice(
                spec.public_key(owner),
                spec.instruction_hash,
                owner,
                notice.absent,
                notice.signature,
            ),
            "notices.signature",
            f"not signed by member {owner}",
        )
        # (6) it did not mask with us: our share of its seed could open a vector masked with nobody
        require(
            state.index not in notice.absent,
            "notices.absent",
            f"member {owner} was told that we were lost, and did not mask with us",
        )


def _require_seen(
    where: str, state: ClientState, shown: Sequence[int], within: Sequence[int]
) -> None:
    """The quorum of all members in a complete graph, t of our own draws in a sparse one."""
    spec = state.spec
    threshold = 1 if spec.degree else spec.threshold
    require_members(where, shown, within=within, threshold=threshold, itself=state.index)
    if spec.degree:
        require_drawn(where, shown, drawn=state.drawn, share_threshold=spec.share_threshold)


def _open_packet(
    state: ClientState, private: X25519PrivateKey, peer: Peer, packet: bytes
) -> HeldShares | None:
    hash_ = state.spec.instruction_hash
    plain = keys.unseal(private, peer.transport_key, hash_, peer.index, state.index, packet)
    if plain is None:
        return None
    try:
        seed_share = shamir.decode_share(plain[: shamir.SHARE_BYTES])
        return HeldShares(peer.index, seed_share, shamir.decode_share(plain[shamir.SHARE_BYTES :]))
    except ProtocolError:  # sealed by its sender, yet not two field elements: the sender lies
        return None
