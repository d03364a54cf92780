"""A client's five steps, as pure functions `(state, message) -> (state, message)`.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
Figure 4, active adversary; with a second key pair for transport, so that a dropout's reconstructed
mask key opens no packet sent to it, and with committed self seeds. Over the complete graph, or in
large cohorts over neighbours that every client draws for itself (Bell et al. 2020; `graph.py`).

What the server sends is checked in `shown.py`. Every check raises ProtocolError by a stable name
and returns nothing: a step that fails leaves no message. After a failed check the caller drops the
state. Error texts hold bounds and indices.

A packet that does not open (a lying sender, or a server that altered it) is kept out, not fatal:
its sender stays in the sum and we reveal no share for it; revealing less is never less safe. So a
sender that spoils packets for all but t of its holders stops nobody. One that spoils more costs the
round at `ServerRound.total`, by name: its own secrets cannot be recovered (as in the paper,
availability against participants is not promised). And in the complete graph at least T packets,
our own counted, must open: they prove that T members, not the server's word, took part in this
very instruction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedattn.errors import UpdateError
from fedattn.randomness import Randomness
from fedattn.secagg import graph, keys, messages, shamir, shown, wire
from fedattn.secagg.checks import require
from fedattn.secagg.confirmation import sign_confirmation, sign_notice, survivors_sha256
from fedattn.secagg.prg import add_masks, pairwise_sign, reduce_words
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.state import ClientState, HeldShares, indices_of
from fedattn.secagg.wire import HASH_BYTES, Stage, signed_message
from fedattn.signing import SigningKey


def advertise(
    spec: RoundSpec,
    index: int,
    identity: SigningKey,
    randomness: Randomness,
    *,
    min_security_bits: float = graph.SECURITY_BITS,
) -> tuple[ClientState, bytes]:
    """Stage 1: draw both key pairs, the self seed and, in a sparse graph, the neighbours.

    The message advertises the keys, the seed's commitment and the neighbours. A caller advertises
    once per instruction hash: a second advertisement under the same one would let the server show
    different keys to different peers, or choose between two draws.

    Raises ProtocolError("roster" | "identity") if `identity` is not member `index` of the roster,
    ("spec.degree") if degree and share threshold give a sparse graph less than 2^-security,
    ("masks") for a round without masks.
    """
    require(spec.is_masked, "masks", "this round's instruction skips them")
    _require_identity(spec, index, identity)
    # (1) too few neighbours, or shares, could leave us alone among colluders
    if spec.degree:
        quorum = (len(spec.roster), spec.max_colluding, spec.threshold)
        bits = max(0.0, -graph.log2_insecurity(*quorum, spec.degree, spec.share_threshold))
        require(
            bits >= min_security_bits,
            "spec.degree",
            f"{spec.share_threshold} of {spec.degree} neighbours give {bits:.1f} bits, "
            f"need {min_security_bits:g}",
        )
    mask_secret, transport_secret, self_seed = (randomness.bytes(32) for _ in range(3))
    drawn = graph.draw_neighbours(len(spec.roster), index, spec.degree, randomness)
    body = messages.Advertisement(
        keys.public_bytes(mask_secret),
        keys.public_bytes(transport_secret),
        keys.seed_commitment(spec.instruction_hash, index, self_seed),
        drawn,
    ).encode()
    message = signed_message(spec, identity, Stage.ADVERTISE, index, body)
    secrets = (mask_secret, transport_secret, self_seed)
    return ClientState(spec, index, Stage.SHARE, message, *secrets, drawn=drawn), message


def share(
    state: ClientState, identity: SigningKey, key_list: bytes, randomness: Randomness
) -> tuple[ClientState, bytes]:
    """Stage 2: verify the peers' keys (U1), then send shares of our mask key and seed.

    To everybody, ourselves included, in the complete graph; else to the members that we drew.

    Raises ProtocolError("decode" | "message.*" | "keys.*" | "stage" | "identity").
    """
    spec, index = _begin(state, identity, Stage.SHARE)
    peers = shown.read_key_list(state, key_list)
    drawn = frozenset(state.drawn)
    to = [peer for peer in peers if peer.index in drawn or not spec.degree]
    holders = indices_of(to) if spec.degree else (index, *indices_of(to))
    key_shares = shamir.split(state.mask_secret, spec.recovery_threshold, holders, randomness)
    seed_shares = shamir.split(state.self_seed, spec.recovery_threshold, holders, randomness)
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
        for peer in to
    )
    message = signed_message(spec, identity, Stage.SHARE, index, messages.Packets(packets).encode())
    own = () if spec.degree else (HeldShares(index, seed_shares[index], key_shares[index]),)
    return replace(state, next_stage=Stage.UPLOAD, peers=peers, held=own), message


def upload(
    state: ClientState,
    identity: SigningKey,
    mailbox: bytes,
    vector: npt.NDArray[np.uint32],
    threads: int = 1,
) -> tuple[ClientState, bytes]:
    """Stage 3: open the packets, then send `vector` (d,) plus the self mask and pairwise masks.

    `vector` is uint32 and taken modulo 2^modulus_bits: a refusal that depends on its values would
    tell them. Mask key, transport key and self seed are dropped from the state. `threads` share
    the work of masking.

    Raises UpdateError for another shape or type, ProtocolError("decode" | "message.*" |
    "mailbox.*" | "stage" | "identity").
    """
    spec, index = _begin(state, identity, Stage.UPLOAD)
    if vector.dtype != np.uint32 or vector.shape != (spec.dimension,):
        raise UpdateError(f"vector must be uint32 of shape ({spec.dimension},)")
    sharers, peers, received = shown.read_mailbox(state, mailbox)
    words: messages.Words = vector.astype(messages.word_type(spec.modulus_bits))
    hash_, private = spec.instruction_hash, keys.load(state.mask_secret)
    masks = [(keys.self_mask_key(hash_, index, state.self_seed), 1)]
    masks += [
        (
            keys.pairwise_mask_key(private, peer.mask_key, hash_, index, peer.index),
            pairwise_sign(index, peer.index),
        )
        for peer in peers
    ]
    add_masks(words, masks, threads)
    reduce_words(words, spec.modulus_bits)
    notice = None
    if spec.degree:
        masked_with = frozenset(sharers)
        absent = tuple(member for member in state.drawn if member not in masked_with)
        signature = sign_notice(identity, hash_, index, absent)
        notice = messages.Notice(index, absent, signature)
    masked = messages.MaskedVector(spec.modulus_bits, words, notice)
    message = signed_message(spec, identity, Stage.UPLOAD, index, *masked.encode())
    after = ClientState(
        spec,
        index,
        Stage.CONFIRM,
        drawn=state.drawn,
        held=tuple(sorted((*state.held, *received), key=lambda shares: shares.owner)),
        sharers=sharers,
    )
    return after, message


def check_upload(state: ClientState, identity: SigningKey, mailbox: bytes) -> None:
    """Raise whatever `upload` would raise of these, before there is a vector to send."""
    _begin(state, identity, Stage.UPLOAD)
    shown.read_mailbox(state, mailbox)


def confirm(
    state: ClientState, identity: SigningKey, survivors: bytes, statement: bytes
) -> tuple[ClientState, bytes]:
    """Stage 4: sign the survivor list (U3) and `statement` (32 bytes) that the caller agreed to.

    Raises ProtocolError("decode" | "message.*" | "survivors.*" | "statement" | "stage" |
    "identity").
    """
    spec, index = _begin(state, identity, Stage.CONFIRM)
    require(len(statement) == HASH_BYTES, "statement", "must have 32 bytes")
    listed = shown.read_survivors(state, survivors)
    hash_ = survivors_sha256(listed)
    signature = sign_confirmation(identity, spec.instruction_hash, hash_, statement)
    message = wire.header(spec, Stage.CONFIRM, wire.Role.CLIENT, index)
    message += messages.Confirmation(hash_, statement, signature).encode()
    after = replace(state, next_stage=Stage.UNMASK, survivors=listed, statement=statement)
    return after, message


def unmask(
    state: ClientState, identity: SigningKey, confirmations: bytes
) -> tuple[ClientState, bytes]:
    """Stage 5: seeing T confirmations of our list, reveal one share per sharer, of one kind.

    A survivor's self-seed share, a dropout's mask-key share. The state afterwards is empty and
    refuses everything.

    Raises ProtocolError("decode" | "message.*" | "confirmations.*" | "notices.*" | "stage" |
    "identity").
    """
    spec, index = _begin(state, identity, Stage.UNMASK)
    shown.require_confirmations(state, confirmations)
    # (1) never both kinds for one member, or its vector is open
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
