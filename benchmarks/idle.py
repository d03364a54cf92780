"""What the engine's benchmark asks of a client: next to nothing, but a fresh vector in reply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedattn.flower.arrays import to_array, view

MESSAGE_TYPE = "train.idle"
app = ClientApp()


@app.train("idle")
def idle(message: Message, context: Context) -> Message:
    """The model's bits times a number of the client's and the round's own: a new vector."""
    model = view(message.content["model"]["vector"]).view(np.uint32)
    words = model * np.uint32(factor(context.node_id, int(message.metadata.group_id)))
    return Message(RecordDict({"words": ArrayRecord({"words": to_array(words)})}), reply_to=message)


def factor(node: int, round_: int) -> int:
    """An odd number below 2^32, another for each node of a round."""
    return (2 * node * 0x9E3779B1 + 2 * round_ * 0x85EBCA77 + 1) % 2**32


@dataclass(frozen=True)
class TakeWords:
    """Takes the vector (d,) out of an idle client's reply."""

    def __call__(self, reply: Message) -> npt.NDArray[np.uint32]:
        array = reply.content["words"].pop("words")
        return view(array)
