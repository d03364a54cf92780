"""Messages that an attacker would try in place of recorded ones, each with the check it fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedattn.secagg import messages
from fedattn.secagg.confirmation import sign_confirmation, sign_notice
from fedattn.secagg.messages import Kind
from fedattn.secagg.wire import EVERYONE, Stage, server_message, signed_message
from tests.secagg.harness import STATEMENT, Round, sha

Bad = tuple[str, Stage, int, bytes, str]  # name, stage, to or from whom, message, check
HEADER, SIGNATURE = 39, 64


def to_clients(r: Round) -> Iterator[Bad]:
    """A complete graph's messages to member 1; member 2 was lost at upload."""
    yield from _key_lists(r)
    yield from _mailboxes(r)
    yield from _later(r)


def _key_lists(r: Round) -> Iterator[Bad]:
    adverts = [r.sent[Stage.ADVERTISE, i] for i in r.spec.members]
    own = messages.Advertisement.decode(adverts[2][HEADER:-SIGNATURE])
    other = messages.Advertisement.decode(adverts[3][HEADER:-SIGNATURE])

    def relay(*relayed):
        return server_message(r.spec, Stage.SHARE, EVERYONE, messages.KeyList(relayed).encode())

    def third(message):
        return relay(*adverts[:2], message, adverts[3])

    def sign(advert, key=3, spec=r.spec):
        return signed_message(spec, r.keys[key], Stage.ADVERTISE, 3, advert.encode())

    cases = {
        "too few members": (relay(*adverts[:2]), "keys.threshold"),
        "one member twice": (relay(*adverts[:2], adverts[1], adverts[2]), "keys.distinct"),
        "not itself": (relay(*adverts[1:]), "keys.self"),
        "other keys under its own name": (
            relay(
                signed_message(
                    r.spec, r.keys[1], Stage.ADVERTISE, 1, replace(own, mask_key=sha("k")).encode()
                ),
                *adverts[1:],
            ),
            "keys.own",
        ),
        "signed by another": (third(sign(own, key=4)), "message.signature"),
        "unsigned": (third(adverts[2][:-SIGNATURE] + bytes(SIGNATURE)), "message.signature"),
        "a member's key, copied": (
            third(sign(replace(own, mask_key=other.mask_key))),
            "keys.repeated",
        ),
        "a key of low order": (third(sign(replace(own, transport_key=bytes(32)))), "keys.point"),
        "draws in a complete graph": (
            third(sign(replace(own, out_neighbours=(1,)))),
            "keys.neighbours",
        ),
        "another instruction": (
            third(sign(own, spec=replace(r.spec, instruction_hash=sha("less noise")))),
            "message.instruction",
        ),
        "of another stage": (third(r.sent[Stage.SHARE, 3]), "message.stage"),
        "cut short": (relay(*adverts)[:-1], "decode"),
        "a byte too many": (relay(*adverts) + b"\0", "decode"),
    }
    for name, (message, check) in cases.items():
        yield f"key list: {name}", Stage.SHARE, 1, message, check


def _mailboxes(r: Round) -> Iterator[Bad]:
    body = messages.Mailbox.decode(r.mailboxes[1][HEADER:])
    packets = body.packets

    def relay(sharers, packets, to=1):
        data = messages.Mailbox(tuple(sharers), tuple(packets)).encode()
        return server_message(r.spec, Stage.UPLOAD, to, data)

    spoiled = [(i, packet[:-1] + bytes([packet[-1] ^ 1])) for i, packet in packets]
    cases = {
        "too few sharers": (relay((1, 2), packets[:1]), "mailbox.threshold"),
        "one sharer twice": (relay((1, 2, 2, 3), packets), "mailbox.distinct"),
        "not itself": (relay((2, 3, 4), packets), "mailbox.self"),
        "a stranger": (relay((1, 2, 3, 5), packets), "mailbox.subset"),
        "a packet missing": (relay(body.sharers, packets[1:]), "mailbox.packets"),
        "packets spoiled": (relay(body.sharers, (*spoiled[:2], packets[2])), "mailbox.proven"),
        "another member's": (relay(body.sharers, packets, to=2), "message.index"),
    }
    for name, (message, check) in cases.items():
        yield f"mailbox: {name}", Stage.UPLOAD, 1, message, check


def _later(r: Round) -> Iterator[Bad]:
    for name, listed, check in (
        ("too few", (1, 3), "survivors.threshold"),
        ("one twice", (1, 3, 3), "survivors.distinct"),
        ("not itself", (2, 3, 4), "survivors.self"),
        ("a stranger", (1, 3, 5), "survivors.subset"),
    ):
        body = messages.SurvivorList(listed).encode()
        message = server_message(r.spec, Stage.CONFIRM, EVERYONE, body)
        yield f"survivors: {name}", Stage.CONFIRM, 1, message, check
    good = messages.ConfirmationList.decode(r.confirmation_lists[1][HEADER:])
    one, two, three = good.signatures
    for name, body, check in (
        ("of another list", replace(good, survivors_sha256=sha("list")), "confirmations.survivors"),
        ("of another statement", replace(good, statement=sha("x")), "confirmations.statement"),
        ("too few", replace(good, signatures=(one, two)), "confirmations.threshold"),
        ("one twice", replace(good, signatures=(one, two, two)), "confirmations.distinct"),
        ("by a dropout", replace(good, signatures=(one, (2, two[1]), two)), "confirmations.subset"),
        ("swapped", replace(good, signatures=(one, two, (4, two[1]))), "confirmations.signature"),
    ):
        message = server_message(r.spec, Stage.UNMASK, EVERYONE, body.encode())
        yield f"confirmations: {name}", Stage.UNMASK, 1, message, check
    assert three[0] == 4


def to_sparse_clients(r: Round) -> Iterator[Bad]:
    """A sparse graph's messages to the first member that drew a member lost at share."""
    lost = next(iter(r.gone[Stage.SHARE]))
    me = next(i for i in r.server.survivor_indices if lost in r.state(Stage.SHARE, i).drawn)
    drawn, least = r.state(Stage.SHARE, me).drawn, r.spec.share_threshold - 1
    near = r.server._adverts.neighbours(me)
    stranger = next(i for i in r.server.advertisers if i != me and i not in near)
    for name, members, check in (
        ("too few own draws", {me, *drawn[:least]}, "keys.drawn"),
        ("an invented neighbour", {me, *near, stranger}, "keys.edge"),
    ):
        relayed = tuple(r.sent[Stage.ADVERTISE, i] for i in sorted(members))
        message = server_message(r.spec, Stage.SHARE, me, messages.KeyList(relayed).encode())
        yield f"sparse key list: {name}", Stage.SHARE, me, message, check
    mailbox = messages.Mailbox.decode(r.mailboxes[me][HEADER:])
    keep = [i for i in mailbox.sharers if i not in drawn[least:]]
    body = messages.Mailbox(tuple(keep), tuple(p for p in mailbox.packets if p[0] in keep))
    message = server_message(r.spec, Stage.UPLOAD, me, body.encode())
    yield "sparse mailbox: too few own draws", Stage.UPLOAD, me, message, "mailbox.drawn"
    survivors = set(r.server.survivor_indices)
    others = [i for i in drawn if i in survivors][least:]
    for name, listed, check in (
        ("a draw that was hidden", survivors | {lost}, "survivors.hidden"),
        ("too few own draws", survivors - set(others), "survivors.drawn"),
    ):
        body = messages.SurvivorList(tuple(sorted(listed))).encode()
        message = server_message(r.spec, Stage.CONFIRM, EVERYONE, body)
        yield f"sparse survivors: {name}", Stage.CONFIRM, me, message, check
    good = messages.ConfirmationList.decode(r.confirmation_lists[me][HEADER:])
    first, *rest = good.notices
    to_me = (me,)
    signature = sign_notice(r.keys[first.owner], r.spec.instruction_hash, first.owner, to_me)
    for name, notices, check in (
        ("missing", rest, "notices.missing"),
        ("altered", [replace(first, absent=to_me), *rest], "notices.signature"),
        (
            "of a mask left out",
            [replace(first, absent=to_me, signature=signature), *rest],
            "notices.absent",
        ),
    ):
        body = replace(good, notices=tuple(notices)).encode()
        message = server_message(r.spec, Stage.UNMASK, me, body)
        yield f"sparse notices: {name}", Stage.UNMASK, me, message, check


def to_server(r: Round) -> Iterator[Bad]:
    """A complete graph's messages from member 3 to the server; member 2 was lost at upload."""

    def send(stage, *body, key=3):
        return signed_message(r.spec, r.keys[key], stage, 3, *body)

    other = messages.Advertisement.decode(r.sent[Stage.ADVERTISE, 1][HEADER:-SIGNATURE])
    yield (
        "advertise: a copied key",
        Stage.ADVERTISE,
        3,
        send(Stage.ADVERTISE, other.encode()),
        "keys.repeated",
    )
    yield "advertise: replayed", Stage.ADVERTISE, 3, r.sent[Stage.ADVERTISE, 1], "message.index"
    packets = messages.Packets.decode(r.sent[Stage.SHARE, 3][HEADER:-SIGNATURE]).packets
    body = messages.Packets(packets[1:]).encode()
    yield "share: a peer left out", Stage.SHARE, 3, send(Stage.SHARE, body), "packets.recipients"
    for name, bits, words, check in (
        ("short", 32, np.zeros(4, np.uint32), "vector.dimension"),
        ("of another modulus", 31, np.zeros(5, np.uint32), "vector.modulus_bits"),
    ):
        message = send(Stage.UPLOAD, *messages.MaskedVector(bits, words).encode())
        yield f"upload: {name}", Stage.UPLOAD, 3, message, check
    notice = messages.Notice(3, (), sign_notice(r.keys[3], r.spec.instruction_hash, 3, ()))
    words = messages.MaskedVector(32, np.zeros(5, np.uint32), notice).encode()
    yield "upload: a notice", Stage.UPLOAD, 3, send(Stage.UPLOAD, *words), "notice"
    forged = r.sent[Stage.UPLOAD, 3][:50] + b"\0\0" + r.sent[Stage.UPLOAD, 3][52:]
    yield "upload: altered", Stage.UPLOAD, 3, forged, "message.signature"
    for name, listed, statement, key, check in (
        ("of another list", sha("list"), STATEMENT, 3, "confirmation.survivors"),
        ("of another statement", r.server.survivors_hash, sha("x"), 3, "confirmation.statement"),
        ("by another", r.server.survivors_hash, STATEMENT, 4, "confirmation.signature"),
    ):
        signature = sign_confirmation(r.keys[key], r.spec.instruction_hash, listed, statement)
        body = messages.Confirmation(listed, statement, signature).encode()
        message = r.sent[Stage.CONFIRM, 3][:HEADER] + body
        yield f"confirm: {name}", Stage.CONFIRM, 3, message, check
    for name, shares, check in (
        ("a survivor's mask key", ((1, Kind.MASK_KEY, 1),), "shares.kind"),
        ("one owner twice", ((1, Kind.SELF_SEED, 1), (1, Kind.SELF_SEED, 2)), "shares.distinct"),
    ):
        message = send(Stage.UNMASK, messages.RevealedShares(shares).encode())
        yield f"unmask: {name}", Stage.UNMASK, 3, message, check
