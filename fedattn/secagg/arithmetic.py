"""A round without masks: the same sum, the same signatures, and nobody's vector is hidden.

For simulations alone, where one party holds every device anyway (`secure_aggregation: arithmetic`).
Skipped are the keys, the shares and the masks; the stages are advertise, upload and confirm. An
upload is signed and encoded as a masked one, its words in clear: *the server sees each of them*.

What keeps a device from sending its words in clear where masks were agreed: the instruction, which
it compared with its policy, says which kind of round this is (`RoundSpec.is_masked`); every step
here refuses a masked spec and every step of `client.py` one without masks; the states are of
different types, neither of which reads the other's bytes.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedattn.errors import UpdateError
from fedattn.secagg import messages, wire
from fedattn.secagg.checks import require, require_members
from fedattn.secagg.confirmation import sign_confirmation, survivors_sha256
from fedattn.secagg.prg import reduce_words
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.survivors import SurvivorSum
from fedattn.secagg.uploads import Uploads
from fedattn.secagg.wire import EVERYONE, HASH_BYTES, Reader, Stage, number
from fedattn.signing import SigningKey

_STATE = b"fedattn/v1/arithmetic-state"


@dataclass(frozen=True)
class ArithmeticState:
    """A client's state before `next_stage`: there is nothing to keep but where it stands."""

    spec: RoundSpec
    index: int
    next_stage: Stage = Stage.UPLOAD

    def __post_init__(self) -> None:
        _require_unmasked(self.spec)

    def to_bytes(self) -> bytes:
        """Label | next stage u8 | index u32; the spec is the instruction's."""
        return _STATE + number(self.next_stage, 1) + number(self.index)

    @classmethod
    def from_bytes(cls, data: bytes, spec: RoundSpec) -> ArithmeticState:
        """Inverse of `to_bytes`; ProtocolError("decode" | "masks") otherwise."""
        reader = Reader(data)
        require(reader.take(len(_STATE)) == _STATE, "decode", "not of a round without masks")
        stage, index = reader.number(1), reader.number(4)
        reader.finish()
        known = stage in (Stage.UPLOAD, Stage.CONFIRM, Stage.DONE)
        require(known, "decode", "no stage of a round without masks")
        return cls(spec, index, Stage(stage))


def begin(spec: RoundSpec, index: int, identity: SigningKey) -> ArithmeticState:
    """Stage 1: take part. There are no keys to advertise.

    Raises ProtocolError("masks" | "roster" | "identity").
    """
    state = ArithmeticState(spec, index)
    _require_step(state, identity, Stage.UPLOAD)
    return state


def check_upload(state: ArithmeticState, identity: SigningKey) -> None:
    """Raise whatever `upload` would raise of these, before there is a vector to send."""
    _require_step(state, identity, Stage.UPLOAD)


def upload(
    state: ArithmeticState, identity: SigningKey, vector: npt.NDArray[np.uint32]
) -> tuple[ArithmeticState, bytes]:
    """Stage 2: send `vector` (d,) as it is, modulo 2^modulus_bits, signed.

    Raises UpdateError for another shape or type, ProtocolError("stage" | "identity").
    """
    _require_step(state, identity, Stage.UPLOAD)
    spec = state.spec
    if vector.dtype != np.uint32 or vector.shape != (spec.dimension,):
        raise UpdateError(f"vector must be uint32 of shape ({spec.dimension},)")
    words: messages.Words = vector.astype(messages.word_type(spec.modulus_bits))
    reduce_words(words, spec.modulus_bits)
    body = messages.MaskedVector(spec.modulus_bits, words).encode()
    message = wire.signed_message(spec, identity, Stage.UPLOAD, state.index, *body)
    return replace(state, next_stage=Stage.CONFIRM), message


def confirm(
    state: ArithmeticState, identity: SigningKey, survivors: bytes, statement: bytes
) -> tuple[ArithmeticState, bytes]:
    """Stage 3: sign the survivor list and `statement` (32 bytes) that the caller agreed to.

    Raises ProtocolError("decode" | "message.*" | "survivors.*" | "statement" | "stage" |
    "identity").
    """
    _require_step(state, identity, Stage.CONFIRM)
    spec, index = state.spec, state.index
    require(len(statement) == HASH_BYTES, "statement", "must have 32 bytes")
    body = wire.open_server(spec, survivors, Stage.CONFIRM, EVERYONE)
    listed = messages.SurvivorList.decode(body).survivors
    # (1) size, distinct members, ourselves among them: what an audit counts on
    require_members(
        "survivors", listed, within=spec.members, threshold=spec.threshold, itself=index
    )
    hash_ = survivors_sha256(listed)
    signature = sign_confirmation(identity, spec.instruction_hash, hash_, statement)
    message = wire.header(spec, Stage.CONFIRM, wire.Role.CLIENT, index)
    message += messages.Confirmation(hash_, statement, signature).encode()
    return replace(state, next_stage=Stage.DONE), message


class ArithmeticRound(SurvivorSum):
    """One round without masks at the server.

    Call, in order: `advertised`*, `uploads`, `uploaded`* (or `summed`* and `add_uploads`),
    `survivors`, `confirmed`*, `total`.
    """

    _opened = "released"

    def __init__(self, spec: RoundSpec) -> None:
        _require_unmasked(spec)
        super().__init__(spec)
        self._advertised: set[int] = set()

    @property
    def advertisers(self) -> tuple[int, ...]:
        """Members that take part, ascending."""
        return tuple(sorted(self._advertised))

    def advertised(self, index: int) -> None:
        """Accept that member `index` takes part; its signed counter says so."""
        self._require_turn(Stage.ADVERTISE, index, self._advertised, self.spec.members)
        self._advertised.add(index)

    @property
    def uploads(self) -> Uploads:
        """Close stage 1: what uploads must be."""
        if self.stage == Stage.ADVERTISE:
            self._close(Stage.ADVERTISE, len(self._advertised), "advertisers", Stage.UPLOAD)
        return Uploads(self.spec)

    def _may_upload(self) -> Container[int]:
        return self._advertised

    def total(self) -> npt.NDArray[np.uint32]:
        """The sum of exactly the survivors' vectors, (d,) uint32, modulo 2^modulus_bits.

        Raises ThresholdError below T confirmations.
        """
        self._close(Stage.CONFIRM, len(self._signatures), "confirmations", Stage.DONE)
        total = self._sum.astype(np.uint32)
        reduce_words(total, self.spec.modulus_bits)
        return total


def _require_unmasked(spec: RoundSpec) -> None:
    # (0) where masks were agreed, nothing is ever sent in clear
    require(not spec.is_masked, "masks", "this round's instruction demands them")


def _require_step(state: ArithmeticState, identity: SigningKey, stage: Stage) -> None:
    # (0) each stage once and in order
    require(
        state.next_stage == stage, "stage", f"next is {int(state.next_stage)}, not {int(stage)}"
    )
    expected = state.spec.public_key(state.index)
    require(identity.public_bytes == expected, "identity", f"is not member {state.index}'s key")
