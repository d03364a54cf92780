"""What trackers wrote, read back: TensorBoard by its own reader, W&B's file by its own messages."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Charts = dict[str, list[tuple[int, float]]]  # key -> (step, value), as written


def event_file(folder: Path) -> tuple[Charts, dict[str, str], dict[str, str]]:
    """Charts, texts and the charts' descriptions of a TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(folder))
    found.Reload()
    charts: Charts = {}
    texts, descriptions = {}, {}
    for tag in found.Tags()["tensors"]:
        events = found.Tensors(tag)
        metadata = found.SummaryMetadata(tag)
        if metadata.plugin_data.plugin_name == "text":
            texts[tag] = make_ndarray(events[0].tensor_proto)[0].decode()
        else:
            charts[tag] = [(each.step, float(make_ndarray(each.tensor_proto))) for each in events]
            descriptions[tag] = metadata.summary_description
    return charts, texts, descriptions


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then a log in LevelDB's format.

    Blocks of 32 KiB hold chunks: CRC (4 bytes), length (2), kind (1: whole, 2: first, 3: middle,
    4: last), data.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    stored, at, parts = path.read_bytes(), 7, b""
    assert stored.startswith(b":W&B")
    while at + 7 <= len(stored):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", stored, at)
        parts += stored[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def wandb_charts(path: Path) -> Charts:
    """The history in a .wandb file, without wandb's own keys."""
    charts: Charts = defaultdict(list)
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            step = record.history.step.num
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                if not key.startswith("_"):
                    charts[key].append((step, float(json.loads(item.value_json))))
    return dict(charts)


def wandb_file(folder: Path) -> Path:
    """The one .wandb file under `folder`."""
    (found,) = folder.rglob("*.wandb")
    return found
