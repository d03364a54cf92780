"""The adversary's hands: an honest round's messages, altered at will, shown to the real client.

Every helper that builds a server's message is here, so that the attacks name what is tried and
not how bytes are laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fedattn.errors import ProtocolError
from fedattn.randomness import Randomness
from fedattn.secagg import client, messages
from fedattn.secagg.confirmation import sign_confirmation, survivors_sha256
from fedattn.secagg.messages import MaskedVector, RevealedShares
from fedattn.secagg.wire import (
    EVERYONE,
    Role,
    Stage,
    body_of,
    open_server,
    open_signed,
    server_message,
    signed_message,
)
from tests.secagg.harness import STATEMENT, Round

RNG = Randomness.seeded(99, "attack")
CLIENT_STAGES = list(Stage)[:5]
ANSWERING = CLIENT_STAGES[1:]  # the stages in which a client answers a message


def refuses(check: str, step: Callable[..., Any], *args: Any, **keywords: Any) -> None:
    """The step must fail by exactly this check, and return nothing."""
    with pytest.raises(ProtocolError) as caught:
        step(*args, **keywords)
    assert caught.value.check == check, str(caught.value)


def step(r: Round, stage: Stage, i: int, message: bytes, **other: Any) -> Any:
    """What the real client `i`, in its state before `stage`, makes of `message`.

    `other` replaces its state, its identity or the statement.
    """
    state = other.get("state") or r.state(stage, i)
    identity = other.get("identity") or r.keys[i]
    if stage == Stage.SHARE:
        return client.share(state, identity, message, RNG)
    if stage == Stage.UPLOAD:
        return client.upload(state, identity, message, other.get("vector", r.vectors[i]))
    if stage == Stage.CONFIRM:
        return client.confirm(state, identity, message, other.get("statement", STATEMENT))
    assert stage == Stage.UNMASK
    return client.unmask(state, identity, message)


def honest(r: Round, stage: Stage, i: int) -> bytes:
    """The server's honest message to member `i` at `stage`."""
    return {
        Stage.SHARE: r.key_list,
        Stage.UPLOAD: r.mailboxes.get(i, b""),
        Stage.CONFIRM: r.survivors,
        Stage.UNMASK: r.confirmations,
    }[stage]


# ---- advertise and share


def adverts(r: Round) -> list[bytes]:
    return [r.sent[Stage.ADVERTISE, i] for i in r.spec.members]


def advertised(r: Round, i: int) -> messages.Advertisement:
    body = open_signed(r.spec, r.sent[Stage.ADVERTISE, i], Stage.ADVERTISE, i)
    return messages.Advertisement.decode(body)


def advert(r: Round, i: int, *, identity=None, spec=None, index=None, **fields: Any) -> bytes:
    """Member `i`'s advertisement with other fields, or another signer, index or instruction."""
    old = advertised(r, i)
    new = messages.Advertisement(**{**vars(old), **fields})
    signer = identity or r.keys[i]
    return signed_message(spec or r.spec, signer, Stage.ADVERTISE, index or i, new.encode())


def key_list(r: Round, relayed: Sequence[bytes]) -> bytes:
    body = messages.KeyList(tuple(relayed)).encode()
    return server_message(r.spec, Stage.SHARE, EVERYONE, body)


def with_advert(r: Round, i: int, message: bytes) -> bytes:
    """The honest key list with another message in member `i`'s place."""
    relayed = adverts(r)
    relayed[i - 1] = message
    return key_list(r, relayed)


def packets_of(r: Round, sender: int) -> dict[int, bytes]:
    body = open_signed(r.spec, r.sent[Stage.SHARE, sender], Stage.SHARE, sender)
    return dict(messages.Packets.decode(body).packets)


# ---- upload


def mail(r: Round, i: int) -> tuple[list[int], dict[int, bytes]]:
    """Sharers and packets by sender in the honest mailbox of member `i`."""
    body = messages.Mailbox.decode(open_server(r.spec, r.mailboxes[i], Stage.UPLOAD, i))
    return list(body.sharers), dict(body.packets)


def mailbox(
    r: Round, i: int, sharers: Sequence[int], packets: Mapping[int, bytes] | Sequence[Any]
) -> bytes:
    pairs = tuple(packets.items()) if isinstance(packets, Mapping) else tuple(packets)
    body = messages.Mailbox(tuple(sharers), pairs).encode()
    return server_message(r.spec, Stage.UPLOAD, i, body)


def words_of(r: Round, message: bytes, i: int) -> np.ndarray:
    return MaskedVector.decode(open_signed(r.spec, message, Stage.UPLOAD, i)).words


# ---- confirm and unmask


def survivor_list(r: Round, listed: Sequence[int]) -> bytes:
    body = messages.SurvivorList(tuple(listed)).encode()
    return server_message(r.spec, Stage.CONFIRM, EVERYONE, body)


def confirmation(r: Round, message: bytes, i: int) -> messages.Confirmation:
    _, body = body_of(r.spec, message, stage=Stage.CONFIRM, role=Role.CLIENT, index=i)
    return messages.Confirmation.decode(body)


def signatures(
    r: Round, signers: Sequence[int], survivors: Sequence[int], statement: bytes = STATEMENT
) -> dict[int, bytes]:
    """What members that follow the server would sign."""
    hash_ = survivors_sha256(survivors)
    return {
        i: sign_confirmation(r.keys[i], r.spec.instruction_hash, hash_, statement) for i in signers
    }


def confirmations(
    r: Round,
    survivors: Sequence[int],
    signed: Mapping[int, bytes] | Sequence[tuple[int, bytes]],
    statement: bytes = STATEMENT,
) -> bytes:
    pairs = tuple(signed.items()) if isinstance(signed, Mapping) else tuple(signed)
    hash_ = survivors_sha256(survivors)
    body = messages.ConfirmationList(hash_, statement, pairs).encode()
    return server_message(r.spec, Stage.UNMASK, EVERYONE, body)


def revealed(r: Round, message: bytes, i: int) -> tuple[tuple[int, messages.Kind, int], ...]:
    return RevealedShares.decode(open_signed(r.spec, message, Stage.UNMASK, i)).shares


def reveal(r: Round, i: int, shares: Sequence[tuple[int, messages.Kind, int]]) -> bytes:
    """A signed reveal of whatever member `i` likes to say."""
    body = RevealedShares(tuple(shares)).encode()
    return signed_message(r.spec, r.keys[i], Stage.UNMASK, i, body)
