"""A ClientApp that does what no client should, at "tests.flower.unruly:app"."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedattn.flower.arrays import to_array
from tests.flower.answering import words_of

LINGERS_S = 20  # what a client leaves behind
app = ClientApp()


@app.train("upload")
def upload(message, context):
    """The client's words, made or sent in a way that `do` names."""
    fate, node = dict(message.content["do"]).get(str(context.node_id), ""), context.node_id
    context.state["asked"] = ConfigRecord({"times": 1})
    if fate == "another message as its own":
        message.metadata.__dict__["_message_id"] = "message-1"
    reply = Message(
        RecordDict({"v": ArrayRecord({"words": to_array(words_of(node))})}), reply_to=message
    )
    if fate == "to no message":
        reply.metadata.__dict__["_reply_to_message_id"] = "message-999"
    if fate == "to another's message":
        reply.metadata.__dict__["_reply_to_message_id"] = "message-1"
    if fate == "from another":
        reply.metadata.__dict__["_src_node_id"] = 1
    if fate == "as another":
        context.node_id = 1
        message.metadata.__dict__["_dst_node_id"] = reply.metadata.__dict__["_src_node_id"] = 1
    if fate == "a reply without bytes":
        reply.content["c"] = ConfigRecord({"x": 2**70})
    if fate == "a state without bytes":
        context.state["c"] = ConfigRecord({"x": 2**70})
    if fate == "no message":
        return None
    if fate == "sys.exit":
        sys.exit(3)
    if fate == "an error without bytes":
        raise ValueError("\ud800")
    if fate.startswith("fork"):
        child = os.fork()
        if not child:
            time.sleep(LINGERS_S)
            os._exit(0)
        (Path(message.content["do"]["forked"]) / str(child)).touch()
    if fate == "fork and die":
        os.kill(os.getpid(), signal.SIGKILL)
    return reply
