"""Every check of a client's last stages, and of every stage, as in `test_client_checks.py`."""

import numpy as np

from fedattn.secagg import client, messages
from fedattn.secagg.confirmation import sign_confirmation, survivors_sha256
from fedattn.secagg.wire import EVERYONE, Stage, server_message
from tests.secagg.harness import STATEMENT, Round, make_spec, sha
from tests.secagg.test_client_checks import RNG, adverts, refuses, try_share

# ---- confirm: the survivor list


def try_confirm(r, survivors, check, statement=STATEMENT):
    body = messages.SurvivorList(tuple(survivors)).encode()
    message = server_message(r.spec, Stage.CONFIRM, EVERYONE, body)
    state = r.state(Stage.CONFIRM, 1)
    if check is None:
        return client.confirm(state, r.keys[1], message, statement)
    return refuses(check, client.confirm, state, r.keys[1], message, statement)


def test_confirm_checks_the_survivor_list():
    r = Round(make_spec(6, 4), gone={Stage.SHARE: {6}})
    r.run()
    try_confirm(r, [1, 2, 3, 4], None)
    try_confirm(r, [1, 2, 3], "survivors.threshold")
    try_confirm(r, [1, 2, 2, 3], "survivors.distinct")
    try_confirm(r, [1, 3, 2, 4], "survivors.distinct")
    try_confirm(r, [1, 2, 3, 6], "survivors.subset")  # advertised, never shared
    try_confirm(r, [1, 2, 3, 9], "survivors.subset")
    try_confirm(r, [2, 3, 4, 5], "survivors.self")
    try_confirm(r, [1, 2, 3, 4], "statement", b"short")


# ---- unmask: the confirmations


def try_unmask(r, check, *, signers=None, survivors=None, statement=STATEMENT, signed=None):
    hash_ = survivors_sha256(survivors or r.server.survivor_indices)
    signers = signers or [1, 2, 3, 4]
    signatures = signed or [
        (i, sign_confirmation(r.keys[i], r.spec.instruction_hash, hash_, statement))
        for i in signers
    ]
    body = messages.ConfirmationList(hash_, statement, tuple(signatures)).encode()
    message = server_message(r.spec, Stage.UNMASK, EVERYONE, body)
    state = r.state(Stage.UNMASK, 1)
    if check is None:
        return client.unmask(state, r.keys[1], message)
    return refuses(check, client.unmask, state, r.keys[1], message)


def test_unmask_reveals_one_kind_of_share_per_member(r):
    state, message = try_unmask(r, None)
    shares = messages.RevealedShares.decode(message[39:-64]).shares
    assert [(owner, kind) for owner, kind, _ in shares] == [
        *((i, messages.Kind.SELF_SEED) for i in (1, 2, 3, 4)),
        (5, messages.Kind.MASK_KEY),
    ]
    assert state.held == ()


def test_unmask_refuses_confirmations_of_another_list(r):
    # member 4 shown to others as a survivor, to us as a dropout, would lose both its secrets
    try_unmask(r, "confirmations.survivors", survivors=[1, 2, 3, 4, 5])


def test_unmask_refuses_another_statement(r):
    try_unmask(r, "confirmations.statement", statement=sha("another intent"))


def test_unmask_refuses_fewer_than_t_repeated_or_foreign_signers(r):
    try_unmask(r, "confirmations.threshold", signers=[1, 2, 3])
    try_unmask(r, "confirmations.distinct", signers=[1, 2, 3, 3])
    try_unmask(r, "confirmations.subset", signers=[1, 2, 3, 5])  # a dropout cannot confirm


def test_unmask_refuses_confirmations_without_its_own():
    r = Round(make_spec(5, 3))
    r.run()
    try_unmask(r, None, signers=[1, 2, 3])
    try_unmask(r, "confirmations.self", signers=[2, 3, 4])


def test_unmask_refuses_a_forged_confirmation(r):
    hash_ = r.server.survivors_hash
    good = list(r.server.confirmation_signatures.items())
    for forged in (
        bytes(64),
        good[1][1],  # member 2's, under the name of member 3
        sign_confirmation(r.keys[3], sha("other instruction"), hash_, STATEMENT),
        sign_confirmation(r.keys[3], r.spec.instruction_hash, sha("list"), STATEMENT),
        sign_confirmation(r.keys[3], r.spec.instruction_hash, hash_, sha("statement")),
    ):
        signed = [*good[:2], (3, forged), good[3]]
        try_unmask(r, "confirmations.signature", signed=signed)


# ---- every stage


def steps(r):
    return {
        Stage.SHARE: lambda s, k, m: client.share(s, k, m, RNG),
        Stage.UPLOAD: lambda s, k, m: client.upload(s, k, m, np.zeros(5, np.uint32)),
        Stage.CONFIRM: lambda s, k, m: client.confirm(s, k, m, STATEMENT),
        Stage.UNMASK: client.unmask,
    }, {
        Stage.SHARE: r.key_list,
        Stage.UPLOAD: r.mailboxes[1],
        Stage.CONFIRM: r.survivors,
        Stage.UNMASK: r.confirmations,
    }


def test_each_stage_runs_once_and_in_order(r):
    step, message = steps(r)
    for stage in step:
        for at in [*step, Stage.DONE]:
            state = r.state(at, 1)
            if at == stage:
                step[stage](state, r.keys[1], message[stage])
            else:
                refuses("stage", step[stage], state, r.keys[1], message[stage])


def test_each_stage_refuses_another_stages_or_rounds_message(r):
    step, message = steps(r)
    old = Round(make_spec(5, 4, 1, instruction=sha("old")), gone={Stage.UPLOAD: {5}})
    old.run()
    _, replayed = steps(old)
    for stage in step:
        state = r.state(stage, 1)
        refuses("message.instruction", step[stage], state, r.keys[1], replayed[stage])
        for other in step:
            if other != stage:
                refuses("message.stage", step[stage], state, r.keys[1], message[other])
        as_client = bytearray(message[stage])
        as_client[2] = 2
        refuses("message.role", step[stage], state, r.keys[1], bytes(as_client))


def test_each_stage_refuses_another_members_identity(r):
    step, message = steps(r)
    for stage in step:
        refuses("identity", step[stage], r.state(stage, 1), r.keys[2], message[stage])
    refuses("identity", client.advertise, r.spec, 1, r.keys[2], RNG)
    refuses("roster", client.advertise, r.spec, 6, r.keys[2], RNG)
    refuses("roster", client.advertise, r.spec, 0, r.keys[2], RNG)


def test_another_instruction_per_client_stops_everybody_before_shares_leave(r):
    other = Round(make_spec(5, 4, 1, instruction=sha("less noise")))
    other.advertise()
    relayed = adverts(r)
    relayed[1] = other.sent[Stage.ADVERTISE, 2]
    try_share(r, relayed, "message.instruction")
