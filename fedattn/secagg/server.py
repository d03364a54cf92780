"""The server's side of one round: relay, add up as vectors arrive, unmask exactly the survivors.

The server checks what clients send because an honest one wants a correct sum; the clients do not
rely on it. A message that fails a check raises ProtocolError and changes nothing: the caller logs
`error.check`, goes on, and that client is out. Too few clients at a stage is ThresholdError, and
nothing is unmasked. Memory: one accumulator (d,), one vector in flight, and the share packets.
Bonawitz et al. 2017, Figure 4, the server's part.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import numpy.typing as npt

from fedattn.errors import ProtocolError, ThresholdError
from fedattn.secagg import keys, messages, wire
from fedattn.secagg.checks import require
from fedattn.secagg.client import read_peer
from fedattn.secagg.confirmation import survivors_sha256, verify_confirmation
from fedattn.secagg.prg import add_masks, pairwise_sign
from fedattn.secagg.recovery import Recovery
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.wire import EVERYONE, HASH_BYTES, Stage, open_signed, server_message


class ServerRound:
    """One round at the server; `stage` is the client message it now accepts.

    Call, in order: `advertised`*, `key_list`, `shared`*, `mailbox`*, `uploaded`*, `survivors`,
    `confirmed`*, `confirmations`, `revealed`*, `total`. The relaying calls close the stage before
    them and may be repeated; a message that comes after its stage is ProtocolError("stage").
    """

    def __init__(self, spec: RoundSpec) -> None:
        self.spec = spec
        self.stage = Stage.ADVERTISE
        self._messages: dict[int, bytes] = {}  # whole advertise messages, relayed as they came
        self._adverts: dict[int, messages.Advertisement] = {}
        self._seen_keys: set[bytes] = set()
        self._packets: dict[int, dict[int, bytes]] = {}  # sender -> recipient -> packet
        self._sum = np.zeros(spec.dimension, messages.word_type(spec.modulus_bits))
        self._uploaded: set[int] = set()
        self._survivors_hash = b""
        self._statement: bytes | None = None
        self._signatures: dict[int, bytes] = {}
        self._revealed: dict[int, dict[int, int]] = {}  # by whom -> owner -> share
        self._total: npt.NDArray[np.uint32] | None = None

    def __repr__(self) -> str:
        stage = self.stage.name.lower()
        return f"ServerRound(round={self.spec.round}, stage={stage}, shares=<omitted>)"

    @property
    def advertisers(self) -> tuple[int, ...]:
        """Members whose keys are accepted (U1), ascending."""
        return tuple(sorted(self._adverts))

    @property
    def sharers(self) -> tuple[int, ...]:
        """Members whose packets are accepted (U2), ascending."""
        return tuple(sorted(self._packets))

    @property
    def survivor_indices(self) -> tuple[int, ...]:
        """Members whose vectors are in the sum (U3), ascending."""
        return tuple(sorted(self._uploaded))

    @property
    def survivors_hash(self) -> bytes:
        """`survivors_sha256` of `survivor_indices`: what survivors confirm."""
        return survivors_sha256(self.survivor_indices)

    @property
    def confirmation_signatures(self) -> dict[int, bytes]:
        """The survivors' verified signatures (64 bytes each) by index (U4), a copy."""
        return dict(sorted(self._signatures.items()))

    @property
    def revealers(self) -> tuple[int, ...]:
        """Members whose revealed shares are accepted (U5), ascending."""
        return tuple(sorted(self._revealed))

    def advertised(self, index: int, message: bytes) -> None:
        """Accept member `index`'s advertise message."""
        self._require_turn(Stage.ADVERTISE, index, self._adverts, self.spec.members)
        peer, advertisement = read_peer(self.spec, index, message)
        # (1) clients would refuse a list with a key advertised twice; the first one stays
        drawn = {peer.mask_key, peer.transport_key}
        fresh = len(drawn) == 2 and not drawn & self._seen_keys
        require(fresh, "keys.repeated", f"member {index}: a key is advertised twice")
        self._seen_keys |= drawn
        self._messages[index] = message
        self._adverts[index] = advertisement

    def key_list(self) -> bytes:
        """Close stage 1: the message that relays every advertisement to every advertiser."""
        self._close(Stage.ADVERTISE, len(self._adverts), "advertisers")
        relayed = tuple(self._messages[index] for index in self.advertisers)
        body = messages.KeyList(relayed).encode()
        return server_message(self.spec, Stage.SHARE, EVERYONE, body)

    def shared(self, index: int, message: bytes) -> None:
        """Accept member `index`'s packets."""
        self._require_turn(Stage.SHARE, index, self._packets, self._adverts)
        body = open_signed(self.spec, message, Stage.SHARE, index)
        packets = messages.Packets.decode(body).packets
        # (1) a peer left out would miss its share
        require(
            [to for to, _ in packets] == [to for to in self.advertisers if to != index],
            "packets.recipients",
            f"member {index}: must address every other advertiser once, in ascending order",
        )
        self._packets[index] = dict(packets)

    def mailbox(self, index: int) -> bytes:
        """Close stage 2: the message to sharer `index` with the packets addressed to it."""
        self._close(Stage.SHARE, len(self._packets), "sharers")
        require(index in self._packets, "mailbox.recipient", f"member {index} did not share")
        packets = tuple(
            (sender, self._packets[sender][index]) for sender in self.sharers if sender != index
        )
        body = messages.Mailbox(self.sharers, packets).encode()
        return server_message(self.spec, Stage.UPLOAD, index, body)

    def uploaded(self, index: int, message: bytes) -> None:
        """Add member `index`'s masked vector to the sum; a malformed one leaves it as it is."""
        self._require_turn(Stage.UPLOAD, index, self._uploaded, self._packets)
        body = open_signed(self.spec, message, Stage.UPLOAD, index)
        masked = messages.MaskedVector.decode(body)
        # (1) a vector of another length or modulus cannot be added
        require(
            masked.modulus_bits == self.spec.modulus_bits,
            "vector.modulus_bits",
            f"member {index}: must be {self.spec.modulus_bits}",
        )
        require(
            len(masked.words) == self.spec.dimension,
            "vector.dimension",
            f"member {index}: must have {self.spec.dimension} coordinates",
        )
        np.add(self._sum, masked.words, out=self._sum)
        self._uploaded.add(index)

    def survivors(self) -> bytes:
        """Close stage 3: the message that names the survivors, the same for all of them."""
        if self.stage == Stage.SHARE:  # nobody asked for a mailbox, so nobody can have uploaded
            self._close(Stage.SHARE, len(self._packets), "sharers")
        self._close(Stage.UPLOAD, len(self._uploaded), "survivors")
        self._survivors_hash = self.survivors_hash
        self._packets = {sender: {} for sender in self._packets}  # relayed, no longer needed
        body = messages.SurvivorList(self.survivor_indices).encode()
        return server_message(self.spec, Stage.CONFIRM, EVERYONE, body)

    def confirmed(self, index: int, message: bytes, statement: bytes) -> None:
        """Accept survivor `index`'s confirmation of our survivor list and of `statement`."""
        self._require_turn(Stage.CONFIRM, index, self._signatures, self._uploaded)
        same = self._statement is None or statement == self._statement
        require(len(statement) == HASH_BYTES and same, "statement", "one per round, of 32 bytes")
        _, body = wire.body_of(
            self.spec, message, stage=Stage.CONFIRM, role=wire.Role.CLIENT, index=index
        )
        said = messages.Confirmation.decode(body)
        require(
            said.survivors_sha256 == self._survivors_hash,
            "confirmation.survivors",
            f"member {index} confirms another survivor list",
        )
        require(
            said.statement == statement,
            "confirmation.statement",
            f"member {index} confirms another statement",
        )
        require(
            verify_confirmation(
                self.spec.public_key(index),
                self.spec.instruction_hash,
                said.survivors_sha256,
                said.statement,
                said.signature,
            ),
            "confirmation.signature",
            f"not signed by member {index}",
        )
        self._statement = statement
        self._signatures[index] = said.signature

    def confirmations(self) -> bytes:
        """Close stage 4: the message that shows every confirmation to those who confirmed."""
        self._close(Stage.CONFIRM, len(self._signatures), "confirmations")
        signed = tuple(self.confirmation_signatures.items())
        assert self._statement is not None
        body = messages.ConfirmationList(self.survivors_hash, self._statement, signed).encode()
        return server_message(self.spec, Stage.UNMASK, EVERYONE, body)

    def revealed(self, index: int, message: bytes) -> None:
        """Accept the shares that member `index` reveals; some may be missing, or lies."""
        self._require_turn(Stage.UNMASK, index, self._revealed, self._signatures)
        body = open_signed(self.spec, message, Stage.UNMASK, index)
        shares = messages.RevealedShares.decode(body).shares
        for owner, kind, _ in shares:
            # (1) one kind per sharer: the self seed of a survivor, the mask key of a dropout
            survived = owner in self._uploaded
            expected = messages.Kind.SELF_SEED if survived else messages.Kind.MASK_KEY
            require(
                owner in self._packets and kind == expected,
                "shares.kind",
                f"member {index}: not the share of member {owner} that was asked for",
            )
        by_owner = {owner: value for owner, _, value in shares}
        require(len(by_owner) == len(shares), "shares.distinct", f"member {index}: one owner twice")
        self._revealed[index] = by_owner

    def total(self) -> npt.NDArray[np.uint32]:
        """The sum of exactly the survivors' vectors, (d,) uint32, modulo 2^modulus_bits.

        Raises ThresholdError below t reveals; ProtocolError("recovery") naming the member whose
        secret no tried subset of t shares reproduces (more reveals may help; the sum is as before).
        """
        if self._total is None:
            self._require_enough(len(self._revealed), "reveals")
            masks = list(self._masks())  # all secrets, or none: only then is the sum touched
            self.stage = Stage.DONE
            add_masks(self._sum, masks)
            self._sum &= self._sum.dtype.type((1 << self.spec.modulus_bits) - 1)
            self._total = self._sum.astype(np.uint32)
            self._revealed = {index: {} for index in self._revealed}
        return self._total.copy()

    def _masks(self) -> Iterator[tuple[bytes, int]]:
        """What to add to the sum of masked vectors: (mask key, sign), in the order of members."""
        recovery = Recovery(self.spec.threshold)
        for owner in self.sharers:
            shares = {x: by[owner] for x, by in sorted(self._revealed.items()) if owner in by}
            if owner in self._uploaded:
                yield self._self_mask(owner, shares, recovery), -1
            else:
                yield from self._pairwise_masks(owner, shares, recovery)

    def _self_mask(self, owner: int, shares: dict[int, int], recovery: Recovery) -> bytes:
        hash_, committed = self.spec.instruction_hash, self._adverts[owner].seed_commitment
        # (1) a seed other than the committed one would leave a wrong sum
        seed = recovery.secret(
            shares, lambda seed: keys.seed_commitment(hash_, owner, seed) == committed
        )
        return keys.self_mask_key(hash_, owner, self._require_secret(owner, seed))

    def _pairwise_masks(
        self, owner: int, shares: dict[int, int], recovery: Recovery
    ) -> Iterator[tuple[bytes, int]]:
        hash_, advertised = self.spec.instruction_hash, self._adverts[owner].mask_key
        # (2) so would a mask key other than the advertised one
        secret = recovery.secret(shares, lambda secret: keys.public_bytes(secret) == advertised)
        private = keys.load(self._require_secret(owner, secret))
        for peer in self.survivor_indices:
            peer_key = self._adverts[peer].mask_key
            mask = keys.pairwise_mask_key(private, peer_key, hash_, owner, peer)
            yield mask, -pairwise_sign(peer, owner)

    def _require_secret(self, owner: int, secret: bytes | None) -> bytes:
        if secret is None:
            detail = f"member {owner}: no {self.spec.threshold} shares agree; nothing unmasked"
            raise ProtocolError("recovery", detail)
        return secret

    def _require_turn(
        self, stage: Stage, index: int, done: Container[int], allowed: Container[int]
    ) -> None:
        # (0) each stage in order, each member once, only who was in the stage before
        require(
            self.stage == stage, "stage", f"is {int(self.stage)}, the message needs {int(stage)}"
        )
        require(index in allowed, "roster", f"member {index} was not in the stage before")
        require(index not in done, "repeat", f"member {index} already sent its message")

    def _close(self, stage: Stage, count: int, noun: str) -> None:
        require(self.stage in (stage, stage + 1), "stage", f"is {int(self.stage)}")
        self._require_enough(count, noun)
        self.stage = Stage(stage + 1)

    def _require_enough(self, count: int, noun: str) -> None:
        if count < self.spec.threshold:
            raise ThresholdError(
                f"{count} {noun}, need {self.spec.threshold}; "
                f"round {self.spec.round} aborted, nothing unmasked"
            )
