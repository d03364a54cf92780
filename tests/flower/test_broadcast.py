"""What crosses between processes is what crosses the wire; what is shared crosses once."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from hypothesis import given
from hypothesis import strategies as st

from fedattn.errors import ProtocolError
from fedattn.flower.arrays import to_array, view
from fedattn.flower.embedded import memory
from fedattn.flower.embedded.broadcast import Broadcast, joined, read_broadcast
from fedattn.flower.embedded.channel import Channel
from fedattn.flower.embedded.crossing import LARGE_BYTES, pack, unpack
from fedattn.flower.grid import EmbeddedGrid

GRID = EmbeddedGrid(lambda message, context: message, {1: {}})  # (it lets messages be made)
SIZES = st.sampled_from([0, 7, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 9])
VALUES = st.one_of(
    SIZES.map(lambda size: bytes(range(256)) * (size // 256) + b"x" * (size % 256)),
    st.integers(-5, 5),
    st.text(max_size=3),
    st.booleans(),
    st.lists(st.integers(-9, 9), max_size=3),
    st.just([b"a" * LARGE_BYTES, b"b"]),
)
NAMES = st.text("abc", min_size=1, max_size=2)
RECORDS = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=4).map(ConfigRecord),
    st.dictionaries(NAMES, st.floats(0, 1), max_size=2).map(MetricRecord),
    st.dictionaries(
        NAMES, SIZES.map(lambda size: Array(np.zeros(size // 4, np.float32))), max_size=3
    ).map(ArrayRecord),
)


def sent(**records):
    return GRID.create_message(RecordDict(records), "train.upload", 1, "1", ttl=9.0)


def wire_bytes(message):
    return message_to_proto(message).SerializeToString()


@given(st.dictionaries(NAMES, RECORDS, max_size=4))
def test_a_message_crosses_as_on_the_wire_and_shares_no_object(records):
    message = sent(**records)
    before = wire_bytes(message)
    there = unpack(pack(message))
    on_the_wire = message_from_proto(ProtoMessage.FromString(before))
    assert wire_bytes(there) == wire_bytes(on_the_wire) == before == wire_bytes(message)
    assert list(there.content) == list(message.content)
    for name, record in there.content.items():
        assert record is not message.content[name]
        assert list(record) == list(message.content[name])


def test_an_array_changed_on_the_other_side_is_unchanged_here():
    message = sent(model=ArrayRecord({"v": to_array(np.arange(5000.0))}))
    there = unpack(pack(message))
    there.content["model"]["v"].data = b"other"
    assert len(unpack(pack(message)).content["model"]["v"].data) > 5000


def test_what_messages_share_is_written_once_and_what_they_do_not_share_goes_along():
    model = ArrayRecord({"v": to_array(np.arange(4000, dtype=np.float32))})
    document = b"d" * LARGE_BYTES
    messages = [
        sent(model=model, c=ConfigRecord({"document": document, "own": bytes([i]) * LARGE_BYTES}))
        for i in range(3)
    ]
    broadcast = Broadcast(messages)
    assert sorted(broadcast.lengths) == sorted([len(document), len(model["v"].data)])
    values = read_broadcast(broadcast.descriptor(), broadcast.lengths)
    assert broadcast.descriptor() == broadcast.descriptor()
    for i, message in enumerate(messages):
        packed = pack(message)
        places, own = broadcast.split(packed)
        assert own == [bytes([i]) * LARGE_BYTES]
        again = unpack(joined(packed.skeleton, packed.places, places, values, own))
        assert wire_bytes(again) == wire_bytes(message)
        assert again.content["model"]["v"].data is values[places[0]]


def test_small_messages_share_nothing():
    content = ConfigRecord({"small": b"x"})
    assert Broadcast([sent(c=content), sent(c=content)]).lengths == []


# ---- frames


@pytest.mark.parametrize("size", [0, 100, 16_000, 17_000, 3_000_000])
def test_a_frame_arrives_whole_whatever_its_size_and_nobody_waits_for_a_reader(size):
    here, there = (Channel(end) for end in socket.socketpair())
    extra = memory.Segment(memory.allocate())
    memory.write(extra.descriptor, [b"beside"])
    blobs = [b"a" * size, b"", b"b" * 3]
    for number in range(3):  # nothing is read meanwhile
        here.send({"number": number}, blobs, [extra.descriptor])
    for number in range(3):
        frame = there.receive()
        assert frame.value == {"number": number}
        assert frame.blobs == blobs
        (descriptor,) = frame.descriptors
        passed = memory.Segment(descriptor)
        assert memory.read(passed.descriptor, 6, 0) == b"beside"
    here.close()
    with pytest.raises(EOFError):
        there.receive()
    with pytest.raises(BrokenPipeError):
        there.send("nobody")
    there.close()


# ---- arrays


@given(
    st.lists(st.integers(0, 255), max_size=50),
    st.sampled_from(["float32", "float64", "uint32", "int64", "uint8"]),
)
def test_an_array_has_flowers_bytes_and_is_seen_without_a_copy(values, dtype):
    vector = np.array(values, dtype)
    array = to_array(vector)
    assert array == Array(vector)
    seen = view(array)
    assert seen.dtype == vector.dtype
    np.testing.assert_array_equal(seen, vector)
    assert not seen.flags.writeable


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" + data[1:],
        lambda data: data.replace(b"(9,)", b"(8,)"),
        lambda data: data.replace(b"(9,)", b"3, 3"),
        lambda data: data.replace(b"<f4", b"|O8"),
        lambda data: data.replace(b"<f4", b"|V4"),
    ],
)
def test_bytes_that_are_no_vector_of_numbers_are_refused(damage):
    array = to_array(np.arange(9, dtype=np.float32))
    array.data = damage(array.data)
    with pytest.raises(ProtocolError):
        view(array)


def test_a_reply_is_to_its_message():
    message = sent()
    there = unpack(pack(message))
    reply = unpack(pack(Message(RecordDict(), reply_to=there)))
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
