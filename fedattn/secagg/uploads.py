"""What an upload must be: a check of public facts alone, so that any process can make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedattn.secagg import messages
from fedattn.secagg.checks import require
from fedattn.secagg.confirmation import verify_notice
from fedattn.secagg.spec import RoundSpec
from fedattn.secagg.wire import Stage, open_signed


@dataclass(frozen=True)
class Uploads:
    """The uploads of one round as the server expects them; holds no secret and can be pickled.

    absent: in a sparse graph, for each member that may upload, which of its draws did not share;
        none in the complete graph, where nobody sends a notice.
    """

    spec: RoundSpec
    absent: Mapping[int, tuple[int, ...]] | None = None

    def read(self, index: int, message: bytes) -> messages.MaskedVector:
        """Member `index`'s upload, verified; its words are a view of `message`.

        Raises ProtocolError("decode" | "message.*" | "roster" | "vector.modulus_bits" |
        "vector.dimension" | "notice").
        """
        spec = self.spec
        upload = messages.MaskedVector.decode(open_signed(spec, message, Stage.UPLOAD, index))
        # (1) a vector of another length or modulus cannot be added
        require(
            upload.modulus_bits == spec.modulus_bits,
            "vector.modulus_bits",
            f"member {index}: must be {spec.modulus_bits}",
        )
        require(
            len(upload.words) == spec.dimension,
            "vector.dimension",
            f"member {index}: must have {spec.dimension} coordinates",
        )
        self.require_notice(index, upload.notice)
        return upload

    def require_notice(self, index: int, notice: messages.Notice | None) -> None:
        """Check that member `index` signed what it was told: who of its draws did not share.

        Otherwise its holders would refuse to reveal, and the round would end there. Raises
        ProtocolError("notice").
        """
        if self.absent is None:
            require(notice is None, "notice", f"member {index}: none in a complete graph")
            return
        absent = self.absent.get(index)
        require(
            notice is not None
            and absent is not None
            and (notice.owner, notice.absent) == (index, absent)
            and verify_notice(
                self.spec.public_key(index),
                self.spec.instruction_hash,
                index,
                absent,
                notice.signature,
            ),
            "notice",
            f"member {index}: must sign which of its draws did not share",
        )
