"""The server's side of one round: relay, add up as vectors arrive, unmask exactly the survivors.

The server checks what clients send because an honest one wants a correct sum; the clients do not
rely on it. A message that fails a check raises ProtocolError and changes nothing: the caller logs
`error.check`, goes on, and that client is out. Too few clients at a stage is ThresholdError, and
nothing is unmasked. Memory: one accumulator (d,), one vector in flight, and O(n k) bytes of keys
and shares; a mailbox is dropped once its owner's vector is in. Bonawitz et al. 2017, Figure 4, and
Bell et al. 2020, the server's part.
"""

from __future__ import annotations

import os
from collections.abc import Container

import numpy as np
import numpy.typing as npt

from fedattn.secagg import keys, messages, wire
from fedattn.secagg.adverts import Adverts
from fedattn.secagg.checks import require
from fedattn.secagg.prg import add_masks, reduce_words
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.survivors import SurvivorSum
from fedattn.secagg.unmasking import masks_to_add, recover_secrets
from fedattn.secagg.uploads import Uploads
from fedattn.secagg.wire import EVERYONE, Stage, open_signed, server_message

_MAIL_BYTES = 4 + keys.PACKET_BYTES
_MAX_THREADS = 4


class ServerRound(SurvivorSum):
    """One round at the server; `stage` is the client message it now accepts.

    Call, in order: `advertised`*, `key_list`, `shared`*, `mailbox`*, `uploaded`* (or, where words
    are added elsewhere, `summed`* and `add_uploads`), `survivors`, `confirmed`*, `confirmations`,
    `revealed`*, `total`. The relaying calls close the stage before them and may be repeated; a
    message that comes after its stage is ProtocolError("stage").
    """

    def __init__(self, spec: RoundSpec, threads: int | None = None) -> None:
        super().__init__(spec)
        require(spec.is_masked, "masks", "this round's instruction skips them")
        self._threads = min(os.cpu_count() or 1, _MAX_THREADS) if threads is None else threads
        self._adverts = Adverts(spec)
        self._key_list = b""  # the same for all in a complete graph
        self._shared: set[int] = set()
        self._mail: dict[int, bytearray] = {}  # recipient -> sender u32 | packet, as they came
        self._uploads: Uploads | None = None
        self._revealed: set[int] = set()
        self._shares: dict[int, dict[int, int]] = {}  # owner -> by whom -> share
        self._total: messages.Words | None = None

    def __repr__(self) -> str:
        stage = self.stage.name.lower()
        return f"ServerRound(round={self.spec.round}, stage={stage}, shares=<omitted>)"

    @property
    def advertisers(self) -> tuple[int, ...]:
        """Members whose keys are accepted (U1), ascending."""
        return tuple(self._adverts)

    @property
    def sharers(self) -> tuple[int, ...]:
        """Members whose packets are accepted (U2), ascending."""
        return tuple(sorted(self._shared))

    @property
    def revealers(self) -> tuple[int, ...]:
        """Members whose revealed shares are accepted (U5), ascending."""
        return tuple(sorted(self._revealed))

    def advertised(self, index: int, message: bytes) -> None:
        """Accept member `index`'s advertise message."""
        self._require_turn(Stage.ADVERTISE, index, self._adverts, self.spec.members)
        self._adverts.accept(index, message)

    def key_list(self, index: int | None = None) -> bytes:
        """Close stage 1: the message that relays to `index` the advertisements it needs.

        In the complete graph it is the same for all, and no index is needed.
        """
        self._close(Stage.ADVERTISE, len(self._adverts), "advertisers")
        if self.spec.degree:
            return self._adverts.key_list(self._recipient("keys.recipient", index, self._adverts))
        self._key_list = self._key_list or self._adverts.key_list(EVERYONE)
        return self._key_list

    def neighbours(self, index: int) -> list[int]:
        """The other members whose keys `index` is shown, ascending."""
        return self._adverts.neighbours(index)

    def shared(self, index: int, message: bytes) -> None:
        """Accept member `index`'s packets."""
        self._require_turn(Stage.SHARE, index, self._shared, self._adverts)
        body = open_signed(self.spec, message, Stage.SHARE, index)
        packets = messages.Packets.decode(body).packets
        # (1) a holder left out would miss its share
        require(
            [to for to, _ in packets] == self._adverts.holders(index),
            "packets.recipients",
            f"member {index}: must address every other advertiser (in a sparse graph, every one "
            "that it drew) once, in ascending order",
        )
        for to, packet in packets:
            self._mail.setdefault(to, bytearray()).extend(wire.number(index) + packet)
        self._shared.add(index)

    def mailbox(self, index: int) -> bytes:
        """Close stage 2: the message to sharer `index` with the packets addressed to it."""
        self._close(Stage.SHARE, len(self._shared), "sharers")
        waiting = self._shared - self._uploaded
        index = self._recipient("mailbox.recipient", index, waiting)
        near = tuple(
            sorted((index, *(i for i in self._adverts.neighbours(index) if i in self._shared)))
        )
        mail = self._mail.get(index, b"")
        packets = messages.Packets.decode(wire.number(len(mail) // _MAIL_BYTES) + mail).packets
        body = messages.Mailbox(near, tuple(sorted(packets))).encode()
        return server_message(self.spec, Stage.UPLOAD, index, body)

    @property
    def uploads(self) -> Uploads:
        """Close stage 2: what uploads must be, now that it is known who shared."""
        if self._uploads is None:
            self._close(Stage.SHARE, len(self._shared), "sharers")
            absent = None
            if self.spec.degree:
                absent = {
                    index: self._adverts.absent(index, self._shared) for index in self._shared
                }
            self._uploads = Uploads(self.spec, absent)
        return self._uploads

    def _may_upload(self) -> Container[int]:
        return self._shared

    def _accepted(self, index: int, notice: messages.Notice | None) -> None:
        super()._accepted(index, notice)
        self._mail.pop(index, None)

    def survivors(self) -> bytes:
        """Close stage 3: the message that names the survivors, the same for all of them."""
        if self.stage == Stage.SHARE:  # nobody asked for a mailbox, so nobody can have uploaded
            self._close(Stage.SHARE, len(self._shared), "sharers")
        listed = super().survivors()
        self._mail.clear()
        return listed

    def confirmations(self, index: int | None = None) -> bytes:
        """Close stage 4: the message that shows to `index` that survivors confirmed.

        Every confirmation, the same for all, in the complete graph, where no index is needed. In a
        sparse one T of them, its own included, and the notices of those that drew it.
        """
        self._close(Stage.CONFIRM, len(self._signatures), "confirmations")
        quorum, notices = sorted(self._signatures), list[messages.Notice]()
        if self.spec.degree:
            index = self._recipient("confirmations.recipient", index, self._signatures)
            others = [signer for signer in quorum if signer != index]
            quorum = sorted((index, *others[: self.spec.threshold - 1]))
            owners = self._uploaded.intersection(self._adverts.owners(index))
            notices = [self._notices[owner] for owner in sorted(owners)]
        signed = tuple((signer, self._signatures[signer]) for signer in quorum)
        assert self._statement is not None
        body = messages.ConfirmationList(
            self._survivors_hash, self._statement, signed, tuple(notices)
        ).encode()
        to = index if index and self.spec.degree else EVERYONE
        return server_message(self.spec, Stage.UNMASK, to, body)

    def revealed(self, index: int, message: bytes) -> None:
        """Accept the shares that member `index` reveals; some may be missing, or lies."""
        self._require_turn(Stage.UNMASK, index, self._revealed, self._signatures)
        body = open_signed(self.spec, message, Stage.UNMASK, index)
        shares = messages.RevealedShares.decode(body).shares
        owners = self._shared.intersection(self._adverts.owners(index))
        for owner, kind, _ in shares:
            # (1) one kind per sharer: the self seed of a survivor, the mask key of a dropout
            survived = owner in self._uploaded
            expected = messages.Kind.SELF_SEED if survived else messages.Kind.MASK_KEY
            require(
                owner in owners and kind == expected,
                "shares.kind",
                f"member {index}: not the share of member {owner} that was asked for",
            )
        once = {owner for owner, _, _ in shares}
        require(len(once) == len(shares), "shares.distinct", f"member {index}: one owner twice")
        for owner, _, value in shares:
            self._shares.setdefault(owner, {})[index] = value
        self._revealed.add(index)

    def total(self) -> npt.NDArray[np.uint32]:
        """The sum of exactly the survivors' vectors, (d,) uint32, modulo 2^modulus_bits.

        Raises ThresholdError below T reveals; ProtocolError("recovery") naming the member whose
        secret no tried subset of shares reproduces (more reveals may help; the sum is as before).
        """
        if self._total is None:
            self._require_enough(len(self._revealed), "reveals")
            round_, survivors = (self.spec, self._adverts), self._uploaded
            # all secrets, or none: only then is the sum touched
            secrets = recover_secrets(*round_, self.sharers, survivors, self._shares)
            self.stage = Stage.DONE
            masks = masks_to_add(*round_, secrets, survivors)
            add_masks(self._sum, masks, self._threads)
            reduce_words(self._sum, self.spec.modulus_bits)
            self._total = self._sum
            self._shares.clear()
        return self._total.astype(np.uint32)

    @staticmethod
    def _recipient(check: str, index: int | None, waiting: Container[int]) -> int:
        require(index is not None and index in waiting, check, f"member {index} awaits none")
        assert index is not None
        return index
