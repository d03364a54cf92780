"""A report claims, to each adversary, what holds, and says what it does not cover."""

from __future__ import annotations

import math

from fedattn.privacy.accountants import spend
from fedattn.privacy.claims import ADVERSARIES, assumptions, caveats, claims, labels
from fedattn.privacy.events import round_event
from tests.run_builder import config


def test_local_noise_gives_all_four_adversaries_the_same_epsilon_and_says_why() -> None:
    private = config()
    events = [round_event(private)] * 3
    rows = claims(private, events)
    assert tuple(row.adversary for row in rows) == ADVERSARIES
    assert {row.epsilon for row in rows} == {spend(events, 1e-5).epsilon}
    assert all(row.unit == "conversation" and row.assumptions for row in rows)
    assert len({row.assumptions for row in rows}) == 4
    assert labels(private) == ()


def test_without_noise_every_row_is_infinite_and_loud_even_before_a_round() -> None:
    bare = config(unit="none", noise="none", epsilon_budget=None)
    for row in claims(bare, []):
        assert row.epsilon == math.inf
        assert row.assumptions == ("NOT PRIVATE: no noise, epsilon = infinity",)
    assert caveats(bare)[0].startswith("NOT PRIVATE")


def test_a_seeded_run_claims_nothing() -> None:
    seeded = config().model_copy(update={"seed": 1})
    assert all(math.isinf(row.epsilon) for row in claims(seeded, [round_event(seeded)]))
    assert labels(seeded)[0].startswith("NOT PRIVATE: seeded")
    assert labels(seeded)[0] in caveats(seeded)


def test_a_private_report_says_what_it_rests_on_and_what_it_leaves_out() -> None:
    rests, leaves = " ".join(assumptions(config())), " ".join(caveats(config()))
    for word in ("secretly", "floating point", "entropy", "neighbours", "How long"):
        assert word in rests
    for word in ("Participation", "partners", "held-out", "Learning rate", "simulation", "public"):
        assert word in leaves
