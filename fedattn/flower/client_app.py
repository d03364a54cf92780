"""The ClientApp: the stages of a round on one device, and nothing in a reply but protocol bytes.

A node's device is the folder `device-dir` of its `node_config`, with the `policy.yaml` in it (or
`policy`, a path). A node without one is virtual: number `partition-id` of those that lie under
$FEDATTN_DEVICES as client-1, client-2, ... and share the policy.yaml there. Round secrets live in
`context.state` between messages; what the device has spent lives on its disk. Only an upload needs
torch.

Whether a round has masks is what its accepted instruction says, at every stage: there is no message
by which a server could have words in clear from a round that is masked (`secagg.arithmetic`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedattn.counters import Counter, countersign_all, require_witnesses
from fedattn.device import Device
from fedattn.errors import ProtocolError, RefusalError
from fedattn.flower import wire
from fedattn.flower.witnesses import read_signatures
from fedattn.instruction import Instruction
from fedattn.policy import Policy, load_policy
from fedattn.secagg import ClientState, arithmetic, client
from fedattn.secagg.arithmetic import ArithmeticState
from fedattn.secagg.messages import Words
from fedattn.start import Floats

app = ClientApp()
DEVICES_VARIABLE = "FEDATTN_DEVICES"
POLICY_FILE = "policy.yaml"
_log = logging.getLogger(__name__)
ROUND_RECORD = _STATE = "fedattn-round"  # in context.state, while a round is open
_Handler = Callable[[Message, Context], Message]


def device_of(context: Context) -> Device:
    """The device that this context belongs to, under its policy as it is now."""
    node = context.node_config
    index = int(node.get("partition-id", 0))
    if "device-dir" in node:
        folder = Path(str(node["device-dir"]))
        policy = Path(str(node.get("policy", folder / POLICY_FILE)))
    else:
        shared = Path(os.environ[DEVICES_VARIABLE])
        folder, policy = shared / f"client-{index + 1}", shared / POLICY_FILE
    state = policy.stat()
    return Device(folder, _policy(policy, state.st_mtime_ns, state.st_size), index)


@lru_cache(maxsize=64)  # in a simulation hundreds of devices share one
def _policy(path: Path, _changed_ns: int, _size: int) -> Policy:
    return load_policy(path)


def _guarded(handler: _Handler) -> _Handler:
    """Turn every exception into a refusal: Flower would send an exception's text to the server."""

    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except (RefusalError, ProtocolError) as error:
            rule = error.rule if isinstance(error, RefusalError) else error.check
            _log.info("declined %s: %s", message.metadata.message_type, error)
        except Exception:
            rule = "internal"
        context.state.config_records.pop(_STATE, None)  # a step that failed ends the round here
        return Message(wire.pack(refusal=rule), reply_to=message)

    return answer


@app.query("enroll")
@_guarded
def enroll(message: Message, context: Context) -> Message:
    """Reply with the device's public identity key and the authority's certificate of it."""
    device = device_of(context)
    content = wire.pack(key=device.identity.public_bytes, certificate=device.certificate)
    return Message(content, reply_to=message)


@app.query("members")
@_guarded
def members(message: Message, context: Context) -> Message:
    """Verify the other members' certificates under the pinned authority and remember them."""
    revoked = wire.optional(message, "revoked")
    device_of(context).meet(wire.field(message, "certificates"), revoked)
    return Message(wire.pack(), reply_to=message)


@app.query("advertise")
@_guarded
def advertise(message: Message, context: Context) -> Message:
    """Accept or decline the instruction; then advertise this round's keys, if it has masks."""
    device, instruction = device_of(context), _instruction(message)
    device.require_ledger_of(wire.optional(message, "remembered"))
    index = device.accept(instruction)
    counter = device.counter(instruction).to_bytes()
    if not instruction.is_masked:
        begun = arithmetic.begin(instruction.spec, index, device.identity)
        _remember(context, instruction.document, begun, counter)
        return Message(wire.pack(counter=counter), reply_to=message)
    randomness = device.randomness("secagg", str(instruction.round), "advertise")
    state, reply = client.advertise(instruction.spec, index, device.identity, randomness)
    _remember(context, instruction.document, state, counter)
    return Message(wire.pack(message=reply, counter=counter), reply_to=message)


@app.query("share")
@_guarded
def share(message: Message, context: Context) -> Message:
    """Verify the peers' keys, share the round's secrets among them, countersign their counters."""
    device, instruction, state = _resume_masked(message, context)
    randomness, identity = (
        device.randomness("secagg", str(instruction.round), "share"),
        device.identity,
    )
    state, reply = client.share(state, identity, wire.field(message, "message"), randomness)
    near = [instruction.roster[peer.index - 1] for peer in state.peers]
    counters = wire.field(message, "counters")
    signatures = countersign_all(device.peers, counters, near, instruction.sha256, identity)
    _remember(context, instruction.document, state)
    return Message(wire.pack(message=reply, countersignatures=signatures), reply_to=message)


@app.train("upload")
@_guarded
def upload(message: Message, context: Context) -> Message:
    """Train, encode, mask. From reading data to the reply nothing can fail because of the data."""
    device, instruction, state = _resume(message, context)
    identity, vector = device.identity, wire.vector(message, instruction.dimension)
    if isinstance(state, ArithmeticState):
        arithmetic.check_upload(state, identity)
        words = _words(device, instruction, state.index, vector)
        return _next(message, context, *arithmetic.upload(state, identity, words))
    mailbox = wire.field(message, "message")
    _require_witnesses(message, context, instruction)
    client.check_upload(state, identity, mailbox)
    words = _words(device, instruction, state.index, vector)
    return _next(message, context, *client.upload(state, identity, mailbox, words))


def _words(device: Device, instruction: Instruction, index: int, vector: Floats) -> Words:
    """Train from `vector` and encode what comes of it, this device's noise included."""
    result = device.train(instruction, vector)
    rounding = device.randomness("rounding", str(instruction.round))
    return instruction.codec.encode(result.delta.cpu().numpy(), index, rounding)


@app.query("confirm")
@_guarded
def confirm(message: Message, context: Context) -> Message:
    """Sign the global survivor list and the ledger's intent line, if it is this instruction's."""
    device, instruction, state = _resume(message, context)
    intent = wire.field(message, "intent")
    _check_intent(intent, instruction)
    listed, statement = wire.field(message, "message"), hashlib.sha256(intent).digest()
    if isinstance(state, ArithmeticState):
        _, reply = arithmetic.confirm(state, device.identity, listed, statement)
        context.state.config_records.pop(_STATE, None)  # nothing follows
        return Message(wire.pack(message=reply), reply_to=message)
    return _next(message, context, *client.confirm(state, device.identity, listed, statement))


@app.query("unmask")
@_guarded
def unmask(message: Message, context: Context) -> Message:
    """Reveal, once, one kind of share per peer; the round's secrets are gone afterwards."""
    device, _, state = _resume_masked(message, context)
    _, reply = client.unmask(state, device.identity, wire.field(message, "message"))
    context.state.config_records.pop(_STATE, None)
    return Message(wire.pack(message=reply), reply_to=message)


def _instruction(message: Message) -> Instruction:
    return Instruction.parse(wire.field(message, "instruction"))


def _resume(
    message: Message, context: Context
) -> tuple[Device, Instruction, ClientState | ArithmeticState]:
    record = context.state.config_records.get(_STATE)
    if record is None:
        raise ProtocolError("stage", "no round is open on this device")
    document, state = record["instruction"], record["state"]
    assert isinstance(document, bytes)
    assert isinstance(state, bytes)
    instruction = Instruction.parse(document)
    if instruction.sha256 != wire.field(message, "instruction"):
        raise ProtocolError("instruction", "is not the one that this round began with")
    device = device_of(context)
    if instruction.is_masked:
        return device, instruction, ClientState.from_bytes(state)
    return device, instruction, ArithmeticState.from_bytes(state, instruction.spec)


def _resume_masked(message: Message, context: Context) -> tuple[Device, Instruction, ClientState]:
    device, instruction, state = _resume(message, context)
    if not isinstance(state, ClientState):
        raise ProtocolError("stage", "a round without masks has no such stage")
    return device, instruction, state


def _remember(
    context: Context,
    document: bytes,
    state: ClientState | ArithmeticState,
    counter: bytes | None = None,
) -> None:
    """Keep the open round until its next message; `counter` once, when it begins."""
    if counter is None:
        kept = context.state.config_records[_STATE]["counter"]
        assert isinstance(kept, bytes)
        counter = kept
    record = {"instruction": document, "state": state.to_bytes(), "counter": counter}
    context.state[_STATE] = ConfigRecord(dict(record))


def _next(
    message: Message, context: Context, state: ClientState | ArithmeticState, reply: bytes
) -> Message:
    document = context.state.config_records[_STATE]["instruction"]
    assert isinstance(document, bytes)
    _remember(context, document, state)
    return Message(wire.pack(message=reply), reply_to=message)


def _require_witnesses(message: Message, context: Context, instruction: Instruction) -> None:
    """More members than may collude countersigned this device's counter, so an honest one did.

    Where fewer are needed for the round, all of those may collude: a stated limit.
    """
    counter = context.state.config_records[_STATE]["counter"]
    assert isinstance(counter, bytes)
    spec = instruction.spec
    others = spec.share_threshold if spec.degree else spec.threshold - 1
    require_witnesses(
        Counter.parse(counter),
        read_signatures(wire.field(message, "witnesses")),
        instruction.roster,
        min(spec.max_colluding + 1, others),
    )


def _check_intent(line: bytes, instruction: Instruction) -> None:
    """The intent must name this instruction and follow the ledger head that it names.

    So a co-signed release commits survivors to what was promised before anyone was contacted.
    """
    try:
        entry = json.loads(line)
        holds = (
            entry["kind"] == "intent"
            and entry["prev"] == instruction.ledger_head
            and entry["body"]["instruction_sha256"] == instruction.sha256.hex()
            and entry["body"]["round"] == instruction.round
        )
    except (ValueError, KeyError, TypeError):
        holds = False
    if not holds:
        raise ProtocolError("intent", "is not this instruction's ledger entry")
