"""How a message crosses between processes: protobuf without the large values, and those as bytes.

A large value (an array's serialised data, or bytes in a ConfigRecord) is immutable and exactly what
the wire carries; cutting it out saves protobuf's passes over it, and lets messages share one.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import (
    config_record_to_proto,
    message_from_proto,
    message_to_proto,
    metric_record_to_proto,
)
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

LARGE_BYTES = 4096


@dataclass(frozen=True)
class Packed:
    """A message as bytes: `values[i]` belongs where `places[i]` = (record, key) says."""

    skeleton: bytes
    places: tuple[tuple[str, str], ...]
    values: tuple[bytes, ...]


def large_values(message: Message) -> list[bytes]:
    """The large values of a message, in the order of `pack`."""
    if not message.has_content():
        return []
    return [value for _, _, value in _large(message.content)]


def pack(message: Message) -> Packed:
    """The message as bytes; it is left as it is."""
    cut = _large(message.content) if message.has_content() else []
    if cut:
        proto = ProtoMessage(
            metadata=metadata_to_proto(message.metadata), content=_without(message.content, cut)
        )
    else:
        proto = message_to_proto(message)
    return Packed(
        proto.SerializeToString(),
        tuple((record, key) for record, key, _ in cut),
        tuple(value for _, _, value in cut),
    )


def unpack(packed: Packed) -> Message:
    """The message as the other side reads it: equal, and no object shared but immutable bytes."""
    message = message_from_proto(ProtoMessage.FromString(packed.skeleton))
    for (name, key), value in zip(packed.places, packed.values, strict=True):
        record = message.content[name]
        if isinstance(record, ArrayRecord):
            record[key].data = value
        elif isinstance(record, ConfigRecord):
            record[key] = value
    return message


def _large(content: RecordDict) -> list[tuple[str, str, bytes]]:
    found = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                if len(array.data) >= LARGE_BYTES:
                    found.append((name, key, array.data))
        elif isinstance(record, ConfigRecord):
            for key, value in record.items():
                if isinstance(value, bytes) and len(value) >= LARGE_BYTES:
                    found.append((name, key, value))
    return found


def _without(content: RecordDict, cut: list[tuple[str, str, bytes]]) -> ProtoRecordDict:
    """The content with nothing in the places of its large values, in the same order."""
    places, proto = {(record, key) for record, key, _ in cut}, ProtoRecordDict()
    for name, record in content.items():
        item = proto.items.add(key=name)
        if isinstance(record, ArrayRecord):
            item.array_record.SetInParent()
            for key, array in record.items():
                item.array_record.items.add(
                    key=key,
                    value=ProtoArray(
                        dtype=array.dtype,
                        shape=array.shape,
                        stype=array.stype,
                        data=b"" if (name, key) in places else array.data,
                    ),
                )
        elif isinstance(record, ConfigRecord):
            light = record.copy()
            for key in record:
                if (name, key) in places:
                    light[key] = b""
            item.config_record.CopyFrom(config_record_to_proto(light))
        else:
            item.metric_record.CopyFrom(metric_record_to_proto(record))
    return proto
