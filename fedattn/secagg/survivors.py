"""The server's part that rounds with and without masks share: the sum, and who confirms it.

Uploads are added as they arrive (`uploaded`), or wherever they arise: then each is checked there by
`uploads`, taken note of here without its words (`summed`), and all words come at once
(`add_uploads`). Both give the same sum, bit for bit, and refuse the same uploads by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container

import numpy as np
import numpy.typing as npt

from fedattn.errors import ThresholdError
from fedattn.secagg import messages, wire
from fedattn.secagg.checks import require
from fedattn.secagg.confirmation import survivors_sha256, verify_confirmation
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.uploads import Uploads
from fedattn.secagg.wire import EVERYONE, HASH_BYTES, Stage, server_message


class SurvivorSum(ABC):
    """The sum over the members whose uploads were accepted, and their confirmations of the list.

    A message that fails a check raises ProtocolError and changes nothing; too few members at a
    stage is ThresholdError. `stage` is the client message that is accepted now.
    """

    def __init__(self, spec: RoundSpec) -> None:
        self.spec = spec
        self.stage = Stage.ADVERTISE
        self._sum = np.zeros(spec.dimension, messages.word_type(spec.modulus_bits))
        self._uploaded: set[int] = set()
        self._elsewhere: set[int] = set()  # of these, whose words `add_uploads` has yet to bring
        self._notices: dict[int, messages.Notice] = {}
        self._survivors_hash = b""
        self._statement: bytes | None = None
        self._signatures: dict[int, bytes] = {}

    @property
    @abstractmethod
    def uploads(self) -> Uploads:
        """What uploads must be, once it is known who may send one; ThresholdError for too few."""

    @abstractmethod
    def _may_upload(self) -> Container[int]:
        """The members that were in the stage before."""

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

    def uploaded(self, index: int, message: bytes) -> None:
        """Add member `index`'s vector to the sum; a malformed one leaves it as it is."""
        self._require_turn(Stage.UPLOAD, index, self._uploaded, self._may_upload())
        upload = self.uploads.read(index, message)
        np.add(self._sum, upload.words, out=self._sum)
        self._accepted(index, upload.notice)

    def summed(self, index: int, notice: messages.Notice | None) -> None:
        """Accept an upload that `uploads` has read elsewhere; its words come by `add_uploads`."""
        self._require_turn(Stage.UPLOAD, index, self._uploaded, self._may_upload())
        self._accepted(index, notice)
        self._elsewhere.add(index)

    def add_uploads(self, total: npt.NDArray[np.uint32]) -> None:
        """Add `total` (d,), the sum modulo 2^32 of the words of all that were `summed`.

        2^b divides 2^32, so that it may be reduced later.
        """
        require(self.stage == Stage.UPLOAD, "stage", f"is {int(self.stage)}")
        fits = total.dtype == np.uint32 and total.shape == self._sum.shape
        require(fits, "sum", f"must be uint32 of shape {self._sum.shape}")
        np.add(self._sum, total.astype(self._sum.dtype, copy=False), out=self._sum)
        self._elsewhere.clear()

    def _accepted(self, index: int, notice: messages.Notice | None) -> None:
        if notice is not None:
            self._notices[index] = notice
        self._uploaded.add(index)

    def survivors(self) -> bytes:
        """Close the uploads: the message that names the survivors, the same for all of them."""
        require(not self._elsewhere, "sum", "words that were summed elsewhere are not in it")
        self._close(Stage.UPLOAD, len(self._uploaded), "survivors")
        self._survivors_hash = self.survivors_hash
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

    def _require_turn(
        self, stage: Stage, index: int, done: Container[int], allowed: Container[int]
    ) -> None:
        # (0) each stage in order, each member once, only who was in the stage before
        require(
            self.stage == stage, "stage", f"is {int(self.stage)}, the message needs {int(stage)}"
        )
        require(index in allowed, "roster", f"member {index} was not in the stage before")
        require(index not in done, "repeat", f"member {index} already sent its message")

    def _close(self, stage: Stage, count: int, noun: str, after: Stage | None = None) -> None:
        """End `stage`, of `count` messages; the next is `after`, or the one that follows."""
        later = Stage(stage + 1) if after is None else after
        require(self.stage in (stage, later), "stage", f"is {int(self.stage)}")
        self._require_enough(count, noun)
        self.stage = later

    def _require_enough(self, count: int, noun: str) -> None:
        if count < self.spec.threshold:
            raise ThresholdError(
                f"{count} {noun}, need {self.spec.threshold}; "
                f"round {self.spec.round} aborted, nothing {self._opened}"
            )

    _opened = "unmasked"  # what an abort says did not happen
