"""A client's five steps, as pure functions `(state, message) -> (state, message)`.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
Figure 4, active adversary, complete graph; with a second key pair for transport, so that a
dropout's reconstructed mask key opens no packet sent to it, and with committed self seeds.

Every check raises ProtocolError by a stable name and returns nothing: a step that fails leaves
no message. After a failed check the caller drops the state. Error texts hold bounds and indices.

A packet that does not open (a lying sender, or a server that altered it) is kept out, not fatal:
its sender stays in the sum and we reveal no share for it; revealing less is never less safe. So a
sender that spoils up to n - t packets stops nobody. One that spoils more costs the round at
`ServerRound.total`, by name: its own secrets cannot be recovered (as in the paper, availability
against participants is not promised). And at least t packets, our own counted, must open: they
prove that t members, not the server's word, took part in this very instruction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedattn.errors import ProtocolError, UpdateError
from fedattn.randomness import Randomness
from fedattn.secagg import keys, messages, shamir, wire
from fedattn.secagg.checks import require, require_members
from fedattn.secagg.confirmation import sign_confirmation, survivors_sha256, verify_confirmation
from fedattn.secagg.prg import add_masks, pairwise_sign
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.state import ClientState, HeldShares, Peer, indices_of
from fedattn.secagg.wire import (
    EVERYONE,
    HASH_BYTES,
    Stage,
    open_server,
    open_signed,
    signed_message,
)
from fedattn.signing import SigningKey


def advertise(
    spec: RoundSpec, index: int, identity: SigningKey, randomness: Randomness
) -> tuple[ClientState, bytes]:
    """Stage 1: draw both key pairs and the self seed; advertise keys and the seed's commitment.

    A caller advertises once per instruction hash: a second advertisement under the same one would
    let the server show different keys to different peers.

    Raises ProtocolError("roster" | "identity") if `identity` is not member `index` of the roster.
    """
    _require_identity(spec, index, identity)
    mask_secret, transport_secret, self_seed = (randomness.bytes(32) for _ in range(3))
    body = messages.Advertisement(
        keys.public_bytes(mask_secret),
        keys.public_bytes(transport_secret),
        keys.seed_commitment(spec.instruction_hash, index, self_seed),
    ).encode()
    message = signed_message(spec, identity, Stage.ADVERTISE, index, body)
    state = ClientState(spec, index, Stage.SHARE, message, mask_secret, transport_secret, self_seed)
    return state, message


def share(
    state: ClientState, identity: SigningKey, key_list: bytes, randomness: Randomness
) -> tuple[ClientState, bytes]:
    """Stage 2: verify everyone's keys (U1), then send each peer shares of our mask key and seed.

    Raises ProtocolError("decode" | "message.*" | "keys.*" | "stage" | "identity").
    """
    spec, index = _begin(state, identity, Stage.SHARE)
    body = open_server(spec, key_list, Stage.SHARE, EVERYONE)
    relayed = messages.KeyList.decode(body).advertisements
    senders = [wire.sender(message) for message in relayed]
    # (1) size, distinct members of the roster, ourselves among them
    require_members("keys", senders, within=spec.members, threshold=spec.threshold, itself=index)
    # (2) with other bytes under our name, our peers would mask with a key we do not hold
    own = relayed[senders.index(index)]
    require(own == state.advertisement, "keys.own", f"member {index}: not what it advertised")
    # (3) every key signed by its member, for this instruction and stage
    peers = tuple(
        read_peer(spec, sender, message)[0]
        for sender, message in zip(senders, relayed, strict=True)
    )
    # (4) a key that serves two members or two purposes
    drawn = [key for peer in peers for key in (peer.mask_key, peer.transport_key)]
    require(len(set(drawn)) == len(drawn), "keys.repeated", "a key is advertised twice")

    key_shares = shamir.split(state.mask_secret, spec.threshold, senders, randomness)
    seed_shares = shamir.split(state.self_seed, spec.threshold, senders, randomness)
    others = tuple(peer for peer in peers if peer.index != index)
    private = keys.load(state.transport_secret)
    packets = tuple(
        (
            peer.index,
            keys.seal(
                private,
                peer.transport_key,
                spec.instruction_hash,
                index,
                peer.index,
                shamir.encode_share(seed_shares[peer.index])
                + shamir.encode_share(key_shares[peer.index]),
                randomness,
            ),
        )
        for peer in others
    )
    message = signed_message(spec, identity, Stage.SHARE, index, messages.Packets(packets).encode())
    held = (HeldShares(index, seed_shares[index], key_shares[index]),)
    return replace(state, next_stage=Stage.UPLOAD, peers=others, held=held), message


def upload(
    state: ClientState, identity: SigningKey, mailbox: bytes, vector: npt.NDArray[np.uint32]
) -> tuple[ClientState, bytes]:
    """Stage 3: open the packets, then send `vector` (d,) plus the self mask and pairwise masks.

    `vector` is uint32 and taken modulo 2^modulus_bits: a refusal that depends on its values would
    tell them. Mask key, transport key and self seed are dropped from the state.

    Raises UpdateError for another shape or type, ProtocolError("decode" | "message.*" |
    "mailbox.*" | "stage" | "identity").
    """
    spec, index = _begin(state, identity, Stage.UPLOAD)
    if vector.dtype != np.uint32 or vector.shape != (spec.dimension,):
        raise UpdateError(f"vector must be uint32 of shape ({spec.dimension},)")
    body = messages.Mailbox.decode(open_server(spec, mailbox, Stage.UPLOAD, index))
    # (1) size, distinct members that advertised, ourselves among them
    require_members(
        "mailbox",
        body.sharers,
        within=(index, *indices_of(state.peers)),
        threshold=spec.threshold,
        itself=index,
    )
    # (2) a sharer without a packet, or a packet without a sharer, is the server's doing
    shared = frozenset(body.sharers)
    peers = [peer for peer in state.peers if peer.index in shared]
    require(
        tuple(sender for sender, _ in body.packets) == indices_of(peers),
        "mailbox.packets",
        "must hold one packet from every other sharer, in ascending order",
    )
    private = keys.load(state.transport_secret)
    opened = [
        _open_packet(state, private, peer, packet)
        for peer, (_, packet) in zip(peers, body.packets, strict=True)
    ]
    held = (*state.held, *(shares for shares in opened if shares is not None))
    # (3) fewer proven sharers than t: the others may be the server's invention
    require(
        len(held) >= spec.threshold,
        "mailbox.proven",
        f"{len(held)} sharers' packets open, need {spec.threshold}",
    )

    words: messages.Words = vector.astype(messages.word_type(spec.modulus_bits))
    hash_, private = spec.instruction_hash, keys.load(state.mask_secret)
    add_masks(words, [(keys.self_mask_key(hash_, index, state.self_seed), 1)])
    add_masks(
        words,
        (
            (
                keys.pairwise_mask_key(private, peer.mask_key, hash_, index, peer.index),
                pairwise_sign(index, peer.index),
            )
            for peer in peers
        ),
    )
    words &= words.dtype.type((1 << spec.modulus_bits) - 1)
    masked = messages.MaskedVector(spec.modulus_bits, words)
    message = signed_message(spec, identity, Stage.UPLOAD, index, *masked.encode())
    after = ClientState(
        spec,
        index,
        Stage.CONFIRM,
        held=tuple(sorted(held, key=lambda shares: shares.owner)),
        sharers=body.sharers,
    )
    return after, message


def confirm(
    state: ClientState, identity: SigningKey, survivors: bytes, statement: bytes
) -> tuple[ClientState, bytes]:
    """Stage 4: sign the survivor list (U3) and `statement` (32 bytes) that the caller agreed to.

    Raises ProtocolError("decode" | "message.*" | "survivors.*" | "statement" | "stage" |
    "identity").
    """
    spec, index = _begin(state, identity, Stage.CONFIRM)
    require(len(statement) == HASH_BYTES, "statement", "must have 32 bytes")
    body = open_server(spec, survivors, Stage.CONFIRM, EVERYONE)
    listed = messages.SurvivorList.decode(body).survivors
    # (1) size, distinct members that shared, ourselves among them. Dropouts are the sharers that
    # are not listed, so no member can be both
    require_members(
        "survivors", listed, within=state.sharers, threshold=spec.threshold, itself=index
    )
    hash_ = survivors_sha256(listed)
    signature = sign_confirmation(identity, spec.instruction_hash, hash_, statement)
    message = wire.header(spec, Stage.CONFIRM, wire.Role.CLIENT, index)
    message += messages.Confirmation(hash_, statement, signature).encode()
    after = replace(state, next_stage=Stage.UNMASK, survivors=listed, statement=statement)
    return after, message


def unmask(
    state: ClientState, identity: SigningKey, confirmations: bytes
) -> tuple[ClientState, bytes]:
    """Stage 5: seeing t confirmations of our list, reveal one share per sharer, of one kind.

    A survivor's self-seed share, a dropout's mask-key share. The state afterwards is empty and
    refuses everything.

    Raises ProtocolError("decode" | "message.*" | "confirmations.*" | "stage" | "identity").
    """
    spec, index = _begin(state, identity, Stage.UNMASK)
    body = messages.ConfirmationList.decode(
        open_server(spec, confirmations, Stage.UNMASK, EVERYONE)
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
    # (4) t real signatures: with 2t > n + c no other list can have as many
    for signer, signature in body.signatures:
        require(
            verify_confirmation(
                spec.public_key(signer), spec.instruction_hash, expected, state.statement, signature
            ),
            "confirmations.signature",
            f"not signed by member {signer}",
        )
    # (5) never both kinds for one member, or its vector is open
    survivors = set(state.survivors)
    shares = tuple(
        (held.owner, messages.Kind.SELF_SEED, held.seed_share)
        if held.owner in survivors
        else (held.owner, messages.Kind.MASK_KEY, held.key_share)
        for held in state.held
    )
    message = signed_message(
        spec, identity, Stage.UNMASK, index, messages.RevealedShares(shares).encode()
    )
    return ClientState(spec, index, Stage.DONE), message


def read_peer(spec: RoundSpec, index: int, message: bytes) -> tuple[Peer, messages.Advertisement]:
    """The verified keys in member `index`'s advertisement; client and server check alike.

    Raises ProtocolError("decode" | "message.*" | "roster" | "keys.point" | "keys.neighbours").
    """
    body = open_signed(spec, message, Stage.ADVERTISE, index)
    advertisement = messages.Advertisement.decode(body)
    keys.require_usable(advertisement.mask_key, index)
    keys.require_usable(advertisement.transport_key, index)
    require(
        not advertisement.out_neighbours,
        "keys.neighbours",
        f"member {index}: must draw no neighbours in a complete graph",
    )
    return Peer(index, advertisement.mask_key, advertisement.transport_key), advertisement


def _begin(state: ClientState, identity: SigningKey, stage: Stage) -> tuple[RoundSpec, int]:
    # (0) each stage once and in order
    require(
        state.next_stage == stage, "stage", f"next is {int(state.next_stage)}, not {int(stage)}"
    )
    _require_identity(state.spec, state.index, identity)
    return state.spec, state.index


def _require_identity(spec: RoundSpec, index: int, identity: SigningKey) -> None:
    expected = spec.public_key(index)
    require(identity.public_bytes == expected, "identity", f"is not member {index}'s key")


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
