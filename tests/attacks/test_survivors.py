"""Two lists, two statements, or two kinds of share for one member: both open its vector."""

from collections import Counter
from functools import lru_cache
from itertools import chain, combinations, product

import pytest

from fedattn.errors import ProtocolError
from fedattn.secagg.confirmation import confirmation_bytes, survivors_sha256
from fedattn.secagg.messages import Kind
from fedattn.secagg.wire import Stage
from tests.attacks.adversary import (
    confirmation,
    confirmations,
    refuses,
    revealed,
    signatures,
    step,
    survivor_list,
)
from tests.secagg.harness import STATEMENT, Round, make_spec, sha


def test_naming_one_client_both_survivor_and_dropout(finished):
    """Confirmed by all as a dropout, it is shown as a survivor when shares are revealed."""
    everyone = [1, 2, 3, 4, 5]
    signed = signatures(finished, everyone, everyone)
    refuses(
        "confirmations.survivors",
        step, finished, Stage.UNMASK, 1, confirmations(finished, everyone, signed),
    )  # fmt: skip
    twice = survivor_list(finished, [1, 2, 3, 4, 4])
    refuses("survivors.distinct", step, finished, Stage.CONFIRM, 1, twice)


def test_a_client_reveals_one_kind_of_share_per_member(finished):
    for i in (1, 2, 3, 4):
        shares = revealed(finished, finished.sent[Stage.UNMASK, i], i)
        assert Counter(owner for owner, _, _ in shares) == Counter([1, 2, 3, 4, 5])
        assert {owner for owner, kind, _ in shares if kind == Kind.MASK_KEY} == {5}


def test_asking_for_shares_twice(finished):
    """After the first answer the state is empty: neither the same nor the other kind leaves."""
    done = finished.state(Stage.DONE, 1)
    everyone = [1, 2, 3, 4, 5]
    for survivors in (everyone[:4], everyone):
        message = confirmations(finished, survivors, signatures(finished, survivors, survivors))
        refuses("stage", step, finished, Stage.UNMASK, 1, message, state=done)
    assert not done.held


def test_asking_for_a_second_confirmation_of_another_list():
    r = Round(make_spec(5, 3))
    r.run()
    confirmed = r.state(Stage.UNMASK, 1)
    refuses("stage", step, r, Stage.CONFIRM, 1, survivor_list(r, [1, 2, 3]), state=confirmed)


# ---- two lists: exhaustive over lists, colluders and who is shown which


def lists(n, t):
    return [c for size in range(t, n + 1) for c in combinations(range(1, n + 1), size)]


class LyingServer:
    """Knows all that its colluders know; shows each honest client one list, then all signatures."""

    def __init__(self, n, t, c):
        self.r = Round(make_spec(n, t, c)).until(Stage.CONFIRM)
        self.t = t
        self.confirmed = {}
        for i, listed in product(self.r.spec.members, lists(n, t)):
            if i in listed:
                message = survivor_list(self.r, listed)
                state, reply = step(self.r, Stage.CONFIRM, i, message)
                self.confirmed[i, listed] = state, confirmation(self.r, reply, i).signature
        self.answers = lru_cache(maxsize=None)(self._answers)

    def _answers(self, i, listed, signers):
        """The shares that client `i` reveals, having confirmed `listed`: {(owner, kind)}."""
        signed = {j: self.confirmed[j, listed][1] for j in sorted(signers)}
        message = confirmations(self.r, listed, signed)
        try:
            state = self.confirmed[i, listed][0]
            _, reply = step(self.r, Stage.UNMASK, i, message, state=state)
        except ProtocolError:
            return frozenset()
        return frozenset((owner, kind) for owner, kind, _ in revealed(self.r, reply, i))

    def shares(self, colluders, shown):
        """How many shares of each secret the server ends up with; `shown` maps honest to list."""
        count = Counter(
            (owner, kind) for owner in self.r.spec.members for kind in Kind for _ in colluders
        )
        for listed in set(shown.values()):
            signers = {i for i, its in shown.items() if its == listed}
            signers |= {j for j in colluders if j in listed}  # colluders sign every list
            for i in signers - set(colluders):
                count.update(self.answers(i, listed, frozenset(signers)))
        return count


@pytest.mark.parametrize(("n", "t", "c"), [(3, 2, 0), (4, 3, 0), (4, 3, 1), (5, 3, 0), (5, 4, 2)])
def test_showing_two_survivor_lists_never_opens_both_secrets_of_anyone(n, t, c):
    server = LyingServer(n, t, c)
    opened = 0
    for colluders in combinations(server.r.spec.members, c):
        honest = [i for i in server.r.spec.members if i not in colluders]
        for pair in combinations(lists(n, t), 2):
            for choice in product(pair, repeat=len(honest)):
                shown = {i: its for i, its in zip(honest, choice, strict=True) if i in its}
                got = server.shares(colluders, shown)
                for owner in honest:
                    enough = [got[owner, kind] >= t for kind in Kind]
                    assert not all(enough), (colluders, shown, owner)
                    opened += any(enough)
    assert opened  # the attack does reach one kind of share where all are shown one list


@pytest.mark.parametrize(("n", "t", "c"), [(3, 2, 0), (4, 3, 1), (5, 3, 0), (7, 5, 2), (8, 6, 3)])
def test_two_quorums_share_an_honest_member_and_at_one_less_they_need_not(n, t, c):
    def disjoint_but_for_colluders(threshold):
        honest = n - c
        return any(
            a + b <= honest
            for a, b in product(range(honest + 1), repeat=2)
            if a + c >= threshold and b + c >= threshold
        )

    assert not disjoint_but_for_colluders(t)
    assert disjoint_but_for_colluders((n + c) // 2)
    refuses("spec.threshold", make_spec, n, (n + c) // 2, c)


# ---- two statements (ledger intents)


def test_swapping_the_statement_between_confirmations():
    """Two intents for one round: nobody's signature on one passes for the other."""
    r = Round(make_spec(4, 3)).until(Stage.CONFIRM)
    listed, other = (1, 2, 3, 4), sha("another intent")
    for split in chain.from_iterable(combinations(listed, k) for k in range(1, 4)):
        said = {i: other if i in split else STATEMENT for i in listed}
        states, signed = {}, {}
        for i in listed:
            states[i], reply = step(
                r, Stage.CONFIRM, i, survivor_list(r, listed), statement=said[i]
            )
            signed[i] = confirmation(r, reply, i).signature
        for i, named in product(listed, (STATEMENT, other)):
            alike = {j: signed[j] for j in listed if said[j] == named}
            if named != said[i]:
                checks = ["statement", "statement"]
            elif len(alike) < r.spec.threshold:
                checks = ["signature", "threshold"]  # with all signatures, with those that hold
            else:
                continue  # t members did agree to it
            for check, shown in zip(checks, (signed, alike), strict=True):
                message = confirmations(r, listed, shown, named)
                refuses(
                    f"confirmations.{check}", step, r, Stage.UNMASK, i, message, state=states[i]
                )


@pytest.mark.parametrize("statement", [b"", b"short", bytes(31), bytes(33)])
def test_a_statement_of_another_length(finished, statement):
    message = finished.survivors
    refuses("statement", step, finished, Stage.CONFIRM, 1, message, statement=statement)


def test_shifting_bytes_from_one_signed_field_to_the_next():
    """Without fixed lengths, hash and statement could share the same signed bytes."""
    hash_, listed, statement = sha("a"), sha("b"), sha("c")
    for parts in (
        (hash_ + listed[:1], listed[1:], statement),
        (hash_, listed + statement[:1], statement[1:]),
        (hash_[:31], hash_[31:] + listed, statement),
    ):
        refuses("confirmation.bytes", confirmation_bytes, *parts)


def test_listing_a_member_twice_in_what_an_auditor_hashes():
    refuses("survivors.distinct", survivors_sha256, [1, 2, 2])


def test_forging_confirmations(finished):
    """Other member's, unsigned, or made for another list, intent or instruction."""
    r, listed = finished, (1, 2, 3, 4)
    good = signatures(r, listed, listed)
    others = signatures(r, listed, (1, 2, 3, 4, 5)), signatures(r, listed, listed, sha("intent"))
    r2 = Round(make_spec(5, 4, 1, instruction=sha("old round")))
    for forged in (bytes(64), good[2], others[0][3], others[1][3], signatures(r2, [3], listed)[3]):
        message = confirmations(r, listed, {**good, 3: forged})
        refuses("confirmations.signature", step, r, Stage.UNMASK, 1, message)


def test_naming_another_intent_than_the_client_signed(finished):
    other = sha("another intent")
    listed = (1, 2, 3, 4)
    message = confirmations(finished, listed, signatures(finished, listed, listed, other), other)
    refuses("confirmations.statement", step, finished, Stage.UNMASK, 1, message)
