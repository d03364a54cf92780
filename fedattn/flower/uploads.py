"""Uploads that are checked and added where they arise, beside the clients; the rest travels on.

What an upload must be needs public facts alone (`secagg.uploads`), so every check of it is made
before its words are added, and nothing is left to refuse afterwards. A reply that fails one is left
as it was: the server checks it again, and refuses it by the same name.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from fedattn.errors import ProtocolError
from fedattn.flower import wire
from fedattn.secagg.messages import Notice
from fedattn.secagg.uploads import Uploads
from fedattn.secagg.wire import Reader

_MARK_BYTES = 16
_FIELD = "summed"  # in place of `message`


def _mark() -> bytes:
    return secrets.token_bytes(_MARK_BYTES)


@dataclass(frozen=True)
class SummedUploads:
    """The `Extract` of one round's uploads; `members` is the index of every node that is asked.

    What it leaves of a reply begins with `mark`, which no client is told: a reply that a client
    made to look like an extracted one is not taken for one.
    """

    uploads: Uploads
    members: Mapping[int, int]
    mark: bytes = field(default_factory=_mark, repr=False)

    def __call__(self, reply: Message) -> npt.NDArray[np.uint32] | None:
        """The reply's words (d,), taken out of it if it is the asked member's whole upload."""
        index = self.members.get(reply.metadata.src_node_id)
        if index is None or reply.has_error() or wire.refusal(reply) is not None:
            return None
        try:
            upload = self.uploads.read(index, wire.field(reply, "message"))
        except ProtocolError:
            return None  # the server will say which check it fails
        wire.take(reply, "message")
        notice = b"" if upload.notice is None else upload.notice.encode()
        wire.put(reply, _FIELD, self.mark + index.to_bytes(4, "big") + notice)
        return upload.words.astype(np.uint32, copy=False)

    def is_extracted(self, reply: Message) -> bool:
        """Whether the words of `reply` were taken out, and are in the sum."""
        return wire.optional(reply, _FIELD).startswith(self.mark)

    def rest(self, index: int, reply: Message) -> Notice | None:
        """What member `index` sent beside the words of an extracted reply.

        ProtocolError("message.index") if they were another member's.
        """
        reader = Reader(wire.field(reply, _FIELD)[_MARK_BYTES:])
        if reader.number(4) != index:
            raise ProtocolError("message.index", f"not the upload of member {index}")
        notice = Notice.read(reader) if reader.remaining else None
        reader.finish()
        return notice
