"""A report claims, to each adversary, what holds, and says what it does not cover."""

from __future__ import annotations

import math

import pytest

from fedattn.config import ROWS, Config
from fedattn.privacy.accountants import spend
from fedattn.privacy.claims import (
    ADVERSARIES,
    adjacency,
    assumptions,
    caveats,
    claims,
    hypothetical_claims,
    labels,
)
from fedattn.privacy.events import PoissonGaussian, round_event
from fedattn.privacy.rows import spends
from tests.run_builder import PRETENDS, config, sampled, summed

D = 10
NONE = {"unit": "none", "noise": "none", "epsilon_budget": None}
SAMPLED_BY_SERVER = sampled(noise="server", epsilon_budget=20.0)
PRIVATE = [config(), summed(), summed(noise="server"), sampled(), SAMPLED_BY_SERVER]


def text(*sentences: str) -> str:
    return " ".join(sentences)


def words(chosen: Config) -> dict[str, str]:
    return {row.row: text(*row.assumptions) for row in claims(chosen, [round_event(chosen, D)])}


def test_local_noise_gives_all_four_adversaries_the_same_epsilon_and_says_why() -> None:
    private = config()
    rows = claims(private, [round_event(private, D)] * 3)
    assert tuple(row.adversary for row in rows) == tuple(ADVERSARIES.values())
    assert {row.epsilon for row in rows} == {spend([PoissonGaussian(0.1, 1.0, 9)], 1e-5).epsilon}
    assert all(row.unit == "conversation" and row.assumptions for row in rows)
    assert len({row.assumptions for row in rows}) == 4
    assert labels(private) == ()


@pytest.mark.parametrize("chosen", PRIVATE)
def test_a_claim_is_the_cost_of_its_row_with_the_part_of_delta_that_may_fail(
    chosen: Config,
) -> None:
    events = [round_event(chosen, D)] * 2
    costs = spends(chosen, events)
    for claim in claims(chosen, events):
        cost = costs[claim.row]
        assert (claim.epsilon, claim.delta, claim.failures) == (
            cost.epsilon,
            cost.delta,
            cost.failures,
        )


def test_an_infinite_row_says_whom_it_trusts_and_a_finite_one_never_does() -> None:
    for chosen in PRIVATE:
        for claim in claims(chosen, [round_event(chosen, D)]):
            trusts = "No guarantee" in text(*claim.assumptions)
            assert trusts == math.isinf(claim.epsilon)


def test_only_the_outsiders_row_speaks_of_amplification_by_the_servers_draws() -> None:
    said = words(sampled())
    assert "is not counted" in said["outsider"]  # eight clients: a cohort's size tells too much
    assert all("No amplification by sampling clients" in said[row] for row in ROWS[1:])
    assert "rate 0.5" in said["outsider"]
    assert not any("rate 0.5" in said[row] for row in ROWS[1:])


def test_amplification_that_is_counted_is_claimed_with_its_assumption() -> None:
    raw = sampled().model_copy(update={"data": sampled().data.model_copy(update={"clients": 200})})
    said = words(raw)["outsider"]
    assert "honest server" in said
    assert "in secret" in said
    assert "amplification by this is counted in this row alone" in said


def test_sampling_of_conversations_counts_in_every_row_of_a_noised_sum() -> None:
    assert all("in secret from the server too" in line for line in words(summed()).values())
    assert not any("in secret from the server" in line for line in words(sampled()).values())


def test_rows_name_the_shares_that_they_count() -> None:
    said = words(summed())
    assert "all survivors that a round needs (3)" in said["outsider"]
    assert "all but one of the survivors that a round needs (3)" in said["server"]
    assert "(3 less 1)" in said["collusion"]
    assert "its own share of the noise alone" in said["unmasked"]


def test_a_cap_on_participations_is_named_where_it_is_counted() -> None:
    capped = words(sampled(max_participations=2))
    assert all("at most 2 rounds of one device" in capped[row] for row in ROWS)
    assert not any("rounds of one device" in line for line in words(sampled()).values())


def test_nor_does_any_row_count_fewer_rounds_without_saying_so() -> None:
    """Also where all clients are asked: the outsider's row counts no more than the others."""
    for made in (config, summed, lambda **privacy: summed(noise="server", **privacy)):
        capped, uncapped = made(max_participations=2), made()
        said, events = words(capped), [round_event(capped, D)] * 4
        for row, cost in spends(capped, events).items():
            is_less = cost.epsilon < spends(uncapped, events)[row].epsilon
            assert is_less == ("at most 2 rounds of one device" in said[row]), row


def test_neighbours_are_said_for_each_unit() -> None:
    assert "one conversation, added or removed" in adjacency(config())
    assert "zero update and its share of the noise" in adjacency(sampled())
    assert "share" not in adjacency(SAMPLED_BY_SERVER)
    assert "Nothing" in adjacency(config(**NONE))


def test_without_noise_every_row_is_infinite_and_loud_even_before_a_round() -> None:
    bare = config(**NONE)
    for row in claims(bare, []):
        assert row.epsilon == math.inf
        assert row.assumptions == ("NOT PRIVATE: no noise, epsilon = infinity",)
    assert caveats(bare)[0].startswith("NOT PRIVATE")


@pytest.mark.parametrize("chosen", PRIVATE)
def test_a_seeded_run_claims_nothing(chosen: Config) -> None:
    seeded = chosen.model_copy(update={"seed": 1})
    for row in claims(seeded, [round_event(seeded, D)]):
        assert math.isinf(row.epsilon)
        assert row.assumptions == labels(seeded)
    assert labels(seeded)[0].startswith("NOT PRIVATE: seeded")
    assert labels(seeded)[0] in caveats(seeded)


def test_a_pretended_world_is_never_claimed_without_the_word() -> None:
    chosen = sampled(hypothetical=PRETENDS)
    label = labels(chosen)[0]
    assert label.startswith("HYPOTHETICAL: noise as if 500 of 10000 clients")
    assert caveats(chosen)[0] == label
    pretended = hypothetical_claims(chosen, D, 3)
    assert [claim.row for claim in pretended] == list(ROWS)
    assert all(claim.assumptions[0].startswith("HYPOTHETICAL") for claim in pretended)
    real = claims(chosen, [round_event(chosen, D)] * 3)
    assert real[0].epsilon == math.inf > pretended[0].epsilon
    assert not any("HYPOTHETICAL" in text(*claim.assumptions) for claim in real)
    assert hypothetical_claims(sampled(), D, 3) == ()


def test_a_private_report_says_what_it_rests_on_and_what_it_leaves_out() -> None:
    rests, leaves = text(*assumptions(config())), text(*caveats(config()))
    for word in ("secretly", "floating point", "entropy", "neighbours", "How long"):
        assert word in rests
    for word in ("Participation", "partners", "held-out", "Learning rate", "simulation", "public"):
        assert word in leaves


def test_a_noised_sum_rests_on_secure_aggregation_and_a_servers_noise_on_the_server() -> None:
    shared, trusted = text(*assumptions(summed())), text(*assumptions(SAMPLED_BY_SERVER))
    for word in ("X25519", "authority", "No more than 1 of a round's clients", "its share"):
        assert word in shared
        assert word not in trusted
    assert "The server added the stated noise to every sum" in trusted
    assert "The server added" not in shared
    assert "told nobody" in trusted
    assert "told nobody" not in shared  # nobody is drawn
    assert "Renyi" in text(*caveats(summed()))
    assert "Renyi" not in text(*caveats(SAMPLED_BY_SERVER))
    for chosen in (summed(), SAMPLED_BY_SERVER):
        assert "skipped or aborted" in text(*caveats(chosen))
    assert "one client owns" in text(*caveats(sampled()))
