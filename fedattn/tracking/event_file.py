"""TensorBoard: one event file, written at once, whose name does not tell the machine's."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedattn.tracking.released import MEANINGS, Plain


class EventFile:
    """A Tracker for `tensorboard --logdir`; needs the extra `tracking`.

    torch makes the summaries and tensorboard the records, as torch's own SummaryWriter has it;
    that one puts the host's name into the file's, and writes from a thread that a full disk ends.
    """

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: Any = None
        self._labels: Sequence[str] = ()

    def begin(self, labels: Sequence[str], config: Mapping[str, Plain]) -> None:
        """Make the file with both as texts; every chart's description carries the labels."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.fedattn.{secrets.token_hex(4)}"
        self._records = RecordWriter((self._folder / name).open("xb"))
        self._put([Event(wall_time=time.time(), file_version="brain.Event:2")])
        self._labels = labels
        texts = {"config": f"```\n{json.dumps(config, indent=2, sort_keys=True)}\n```"}
        if labels:
            texts["labels"] = _loud(labels)
        self._put([_event(0, _summaries().text(tag, text)) for tag, text in texts.items()])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a point for each chart, through to the file."""
        points = []
        for key, value in values.items():
            point = _summaries().scalar(key, value, new_style=True)
            meaning = "\n\n".join(filter(None, [_loud(self._labels), MEANINGS[key]]))
            point.value[0].metadata.summary_description = meaning
            points.append(_event(step, point))
        self._put(points)

    def close(self, *, is_complete: bool) -> None:
        """Close the file."""
        if self._records is not None:
            self._records.close()

    def _put(self, events: Sequence[Any]) -> None:
        for event in events:
            self._records.write(event.SerializeToString())
        self._records.flush()


def _summaries() -> Any:
    """torch's makers of summaries, which have no types."""
    from torch.utils.tensorboard import summary

    return summary


def _event(step: int, summary: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, summary=summary)


def _loud(labels: Sequence[str]) -> str:
    return "\n\n".join(f"**{label}**" for label in labels)
