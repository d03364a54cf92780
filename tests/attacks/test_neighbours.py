"""Large cohorts: neighbours that a server, or its colluders, would choose around a victim."""

from dataclasses import replace
from itertools import combinations

import pytest

from fedattn.randomness import Randomness
from fedattn.secagg import client, messages
from fedattn.secagg.confirmation import sign_notice, survivors_sha256
from fedattn.secagg.wire import Stage, open_server, sender, server_message
from tests.attacks.adversary import (
    RNG,
    advert,
    advertised,
    mailbox,
    refuses,
    revealed,
    signatures,
    step,
    survivor_list,
)
from tests.secagg.harness import Round, make_spec, sha

VICTIM = 1
K, T_SHARES = 4, 3  # each draws four, three of which reconstruct


@pytest.fixture(scope="module")
def r():
    """Nine members, quorum 7, each masks with those it drew and those that drew it."""
    done = Round(make_spec(9, 7, 1, degree=K, share_threshold=T_SHARES))
    done.run()
    return done


def drawn(r):
    """Whom the victim drew: the holders of its shares."""
    return r.state(Stage.SHARE, VICTIM).drawn


def relayed(r):
    """The advertisements that the victim is shown, by member."""
    body = open_server(r.spec, r.key_lists[VICTIM], Stage.SHARE, VICTIM)
    return {sender(m): m for m in messages.KeyList.decode(body).advertisements}


def shows_keys(r, adverts, check):
    body = messages.KeyList(tuple(adverts[i] for i in sorted(adverts))).encode()
    message = server_message(r.spec, Stage.SHARE, VICTIM, body)
    if check is None:
        return step(r, Stage.SHARE, VICTIM, message)
    return refuses(check, step, r, Stage.SHARE, VICTIM, message)


def shows_mail(r, hidden, check):
    """The victim's mailbox without some sharers; the rest is honest."""
    body = messages.Mailbox.decode(open_server(r.spec, r.mailboxes[VICTIM], Stage.UPLOAD, VICTIM))
    sharers = [i for i in body.sharers if i not in hidden]
    packets = [(i, packet) for i, packet in body.packets if i not in hidden]
    message = mailbox(r, VICTIM, sharers, packets)
    if check is None:
        return step(r, Stage.UPLOAD, VICTIM, message)
    return refuses(check, step, r, Stage.UPLOAD, VICTIM, message)


def test_a_degree_too_small_to_hide_in(r):
    """The server's instruction may say any degree; the client asks for 2^-40 by its own bound."""
    for degree, share_threshold in ((1, 1), (4, 1), (4, 3), (8, 2)):
        spec = make_spec(9, 7, 1, degree=degree, share_threshold=share_threshold)
        refuses("spec.degree", client.advertise, spec, VICTIM, r.keys[VICTIM], RNG)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("spec.degree", {"degree": 9}),
        ("spec.degree", {"degree": -1}),
        ("spec.share_threshold", {"share_threshold": 0}),
        ("spec.share_threshold", {"share_threshold": K + 1}),
        ("spec.share_threshold", {"degree": 0}),
    ],
)
def test_an_impossible_graph(r, check, change):
    refuses(check, replace, r.spec, **change)


def test_grinding_instructions_until_a_victim_draws_colluders(r):
    """Draws come from the client's own randomness: the instruction has no part in them."""
    seen = set()
    for attempt in range(30):
        spec = replace(r.spec, instruction_hash=sha(f"attempt {attempt}"))
        args = (spec, VICTIM, r.keys[VICTIM])
        state, _ = client.advertise(*args, Randomness.seeded(5), min_security_bits=0)
        seen.add(state.drawn)
    assert len(seen) == 1
    fresh = {
        client.advertise(r.spec, VICTIM, r.keys[VICTIM], Randomness.from_os(), min_security_bits=0)[
            0
        ].drawn
        for _ in range(60)
    }
    assert len(fresh) > 20  # of 70 possible sets
    assert {member for one in fresh for member in one} == set(range(2, 10))


def test_placing_colluders_around_a_victim(r):
    """Members that the victim did not draw and that did not draw it are no neighbours."""
    adverts = relayed(r)
    strangers = [i for i in r.spec.members if i not in adverts]
    assert strangers
    for stranger in strangers:
        placed = {**adverts, stranger: r.sent[Stage.ADVERTISE, stranger]}
        shows_keys(r, placed, "keys.edge")


def test_rewriting_whom_a_member_drew(r):
    """Draws are signed with the keys; a colluding member may sign any, but k of them and fair."""
    adverts = relayed(r)
    peer = drawn(r)[0]
    own = advertised(r, peer).out_neighbours
    by_server = advert(r, peer, identity=r.keys[VICTIM], out_neighbours=own)
    shows_keys(r, {**adverts, peer: by_server}, "message.signature")
    for draws in (
        (),
        own[:-1],
        (*own, max(set(r.spec.members) - set(own) - {peer})),
        own[::-1],
        (own[0], own[0], *own[2:]),
        tuple(sorted((peer, *own[1:]))),
        (*own[:-1], 10),
        (0, *own[1:]),
    ):
        signed = advert(r, peer, out_neighbours=draws)
        shows_keys(r, {**adverts, peer: signed}, "keys.neighbours")


def test_hiding_the_members_a_victim_drew(r):
    """With fewer than t of its own draws it could be alone among others' choice."""
    adverts, own = relayed(r), drawn(r)
    shows_keys(r, {i: m for i, m in adverts.items() if i != own[0]}, None)
    for hidden in combinations(own, K - T_SHARES + 1):
        shows_keys(r, {i: m for i, m in adverts.items() if i not in hidden}, "keys.drawn")
    only_own_draws = {i: m for i, m in adverts.items() if i in own or i == VICTIM}
    shows_keys(r, only_own_draws, None)
    shows_keys(r, {i: m for i, m in adverts.items() if i != VICTIM}, "keys.self")


def test_calling_the_members_a_victim_drew_lost(r):
    own = drawn(r)
    shows_mail(r, {own[0]}, None)
    for hidden in combinations(own, K - T_SHARES + 1):
        shows_mail(r, set(hidden), "mailbox.drawn")
    shows_mail(r, {VICTIM}, "mailbox.self")


def test_a_member_that_was_called_lost_and_survives(r):
    """The victim did not mask with it: its share of the victim's seed would open too much."""
    own = drawn(r)
    state, _ = shows_mail(r, {own[0]}, None)
    refuses(
        "survivors.hidden",
        step, r, Stage.CONFIRM, VICTIM, survivor_list(r, r.spec.members), state=state,
    )  # fmt: skip
    without = [i for i in r.spec.members if i != own[0]]
    step(r, Stage.CONFIRM, VICTIM, survivor_list(r, without), state=state)


def test_a_survivor_list_without_the_victims_holders(r):
    own = drawn(r)
    for lost in combinations(own, K - T_SHARES + 1):
        listed = [i for i in r.spec.members if i not in lost]
        assert len(listed) >= r.spec.threshold
        refuses("survivors.drawn", step, r, Stage.CONFIRM, VICTIM, survivor_list(r, listed))


# ---- notices: what a holder reveals a survivor's seed on


def shows_notices(r, change, check):
    """The victim's confirmations with other notices."""
    body = messages.ConfirmationList.decode(
        open_server(r.spec, r.confirmation_lists[VICTIM], Stage.UNMASK, VICTIM)
    )
    notices = change({notice.owner: notice for notice in body.notices})
    other = replace(body, notices=tuple(notices.values())).encode()
    message = server_message(r.spec, Stage.UNMASK, VICTIM, other)
    if check is None:
        return step(r, Stage.UNMASK, VICTIM, message)
    return refuses(check, step, r, Stage.UNMASK, VICTIM, message)


def notice(r, owner, absent, *, signer=None, hash_=None):
    signature = sign_notice(
        r.keys[signer or owner], hash_ or r.spec.instruction_hash, owner, absent
    )
    return messages.Notice(owner, absent, signature)


def test_opening_the_seed_of_a_member_that_was_told_we_were_lost(r):
    """Masked without us, its vector must not be opened by our share: its own signature tells us."""
    owners = [held.owner for held in r.state(Stage.UNMASK, VICTIM).held]
    _, message = shows_notices(r, dict, None)
    assert {owner for owner, _, _ in revealed(r, message, VICTIM)} == set(owners)
    for owner in owners:
        told = notice(r, owner, (VICTIM,))
        shows_notices(r, lambda n, o=owner, t=told: {**n, o: t}, "notices.absent")
        shows_notices(r, lambda n, o=owner: {i: n[i] for i in n if i != o}, "notices.missing")


def test_forging_a_notice(r):
    owner = r.state(Stage.UNMASK, VICTIM).held[0].owner
    true = notice(r, owner, (VICTIM,))
    other = next(i for i in r.spec.members if i not in (owner, VICTIM))
    for forged in (
        replace(true, absent=()),  # the server takes the victim out of it
        replace(true, signature=bytes(64), absent=()),
        notice(r, owner, (), signer=other),
        notice(r, owner, (), hash_=sha("old round")),
        replace(notice(r, other, ()), owner=owner),
    ):
        shows_notices(r, lambda n, f=forged: {**n, owner: f}, "notices.signature")


# ---- what holds for every graph


def test_another_members_messages(r):
    other = drawn(r)[0]
    for stage, shown in (
        (Stage.SHARE, r.key_lists),
        (Stage.UPLOAD, r.mailboxes),
        (Stage.UNMASK, r.confirmation_lists),
    ):
        refuses("message.index", step, r, stage, VICTIM, shown[other])


def test_two_survivor_lists_need_one_global_quorum_in_a_sparse_graph_too(r):
    """Neighbours' confirmations are not enough: T of all members sign one list."""
    listed = list(r.spec.members)[:8]
    state, _ = step(r, Stage.CONFIRM, VICTIM, survivor_list(r, listed))
    for size in range(1, r.spec.threshold):
        signers = [VICTIM, *[i for i in listed if i != VICTIM][: size - 1]]
        body = messages.ConfirmationList.decode(
            open_server(r.spec, r.confirmation_lists[VICTIM], Stage.UNMASK, VICTIM)
        )
        signed = tuple(signatures(r, signers, listed).items())
        body = replace(body, survivors_sha256=survivors_sha256(listed), signatures=signed)
        message = server_message(r.spec, Stage.UNMASK, VICTIM, body.encode())
        refuses("confirmations.threshold", step, r, Stage.UNMASK, VICTIM, message, state=state)
