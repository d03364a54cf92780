"""What crosses the wire: one ConfigRecord of named bytes a message, and the model's vector.

Requests (server to client, `message_type` routes them to an action) and their replies:

    query.enroll      -                                     -> key, certificate
    query.members     certificates, revoked (may lack)      -> -
    query.advertise   instruction, remembered               -> message, counter
    query.share       instruction hash, message, counters   -> message, countersignatures
    train.upload      instruction hash, message, witnesses,
                      model vector                          -> message
    query.confirm     instruction hash, message, intent     -> message
    query.unmask      instruction hash, message             -> message

`message` holds the signed bytes of `fedattn.secagg`; `remembered` (may lack), `counter`,
`counters`, `countersignatures` and `witnesses` are those of `fedattn.counters`. A client that
declines replies with `refusal` alone: the name of a rule, decided before private data is read.
Nothing else is ever sent: no loss, no count, no norm, no data size, no exception text.

A run without masks (`secure_aggregation: arithmetic`, a simulation) has no share and no unmask:
advertise is answered by `counter` alone, an upload asked for without `message` and `witnesses`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedattn.errors import ProtocolError
from fedattn.flower.arrays import view
from fedattn.start import Floats

if TYPE_CHECKING:
    from torch import Tensor

ENROLL: Final = "query.enroll"
MEMBERS: Final = "query.members"
ADVERTISE: Final = "query.advertise"
SHARE: Final = "query.share"
UPLOAD: Final = "train.upload"
CONFIRM: Final = "query.confirm"
UNMASK: Final = "query.unmask"
STAGES: Final = {
    "advertise": ADVERTISE,
    "share": SHARE,
    "upload": UPLOAD,
    "confirm": CONFIRM,
    "unmask": UNMASK,
}
_RECORD = "fedattn"
_MODEL = "model"


def pack(*, model: ArrayRecord | None = None, **fields: bytes | str) -> RecordDict:
    """A message's content: named bytes or text, and optionally the model (see `pack_model`)."""
    content = RecordDict({_RECORD: ConfigRecord(dict(fields))})
    if model is not None:
        content[_MODEL] = model
    return content


def pack_model(vector: Tensor) -> ArrayRecord:
    """The model's vector (d,) as the one record that all of a round's messages share.

    A copy in each would make a server's memory grow by a vector per client.
    """
    return ArrayRecord({"vector": Array(vector.cpu().numpy())})


def field(message: Message, name: str) -> bytes:
    """The bytes under `name`; ProtocolError("wire") if they are missing or of another type."""
    record = message.content.config_records.get(_RECORD)
    value = None if record is None else record.get(name)
    if not isinstance(value, bytes):
        raise ProtocolError("wire", f"a message lacks the bytes `{name}`")
    return value


def optional(message: Message, name: str) -> bytes:
    """As `field`, but empty if the message lacks it."""
    record = message.content.config_records.get(_RECORD)
    return b"" if record is None or name not in record else field(message, name)


def take(message: Message, name: str) -> bytes:
    """As `field`, and the message forgets the bytes.

    Flower's records are in reference cycles, so a dropped message keeps its content until the
    garbage collector comes by: a server's memory would grow by a vector per reply.
    """
    value = field(message, name)
    del message.content.config_records[_RECORD][name]
    return value


def put(message: Message, name: str, value: bytes) -> None:
    """Add bytes under `name` to a message that has others."""
    message.content.config_records[_RECORD][name] = value


def refusal(message: Message) -> str | None:
    """The rule by which a client declined, if it did."""
    record = message.content.config_records.get(_RECORD)
    value = None if record is None else record.get("refusal")
    return value if isinstance(value, str) else None


def vector(message: Message, dimension: int) -> Floats:
    """The model's vector (d,) float32; ProtocolError("wire") unless it has `dimension` numbers."""
    arrays = message.content.array_records.get(_MODEL)
    array = None if arrays is None else arrays.get("vector")
    if array is None or array.dtype != "float32" or tuple(array.shape) != (dimension,):
        raise ProtocolError("wire", f"a message lacks the model vector ({dimension},) float32")
    values = np.array(view(array), np.float32)
    if values.shape != (dimension,):  # (what was checked is what the sender says of it)
        raise ProtocolError("wire", f"a message lacks the model vector ({dimension},) float32")
    return values
