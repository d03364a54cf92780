"""What may come next, how likely, and from which random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fedattn.errors import ConfigError
from fedattn.sampling import Sampling, drawn, next_tokens, nucleus, penalised, stream_of

SIZE = 7
numbers = st.floats(-30, 30, width=32)
rows = st.lists(numbers, min_size=SIZE, max_size=SIZE)
shares = st.floats(0.01, 1.0)
uniform = st.floats(0, 1, exclude_max=True)


def chances(logits):
    return torch.tensor([logits]).softmax(1)


def chosen(logits, sampling, u=0.5, said=(), barred=()):
    flags = torch.zeros(2, 1, SIZE, dtype=torch.bool)
    flags[0, 0, list(said)] = True
    flags[1, 0, list(barred)] = True
    made = next_tokens(
        torch.tensor([logits]), sampling, said=flags[0], barred=flags[1], uniforms=[u]
    )
    return int(made[0])


@given(rows, shares)
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(logits, top_p):
    before = chances(logits)[0].double()
    after = nucleus(chances(logits), top_p)[0]
    kept = [i for i in range(SIZE) if after[i] > 0]
    mass = sum(float(before[i]) for i in kept)
    assert mass >= top_p - 1e-6
    # without its least likely member it holds less, and nothing outside is likelier
    least = min(float(before[i]) for i in kept)
    assert mass - least < top_p + 1e-6
    assert all(float(before[i]) <= least for i in range(SIZE) if i not in kept and before[i] > 0)
    assert float(after.sum()) == pytest.approx(1.0, abs=1e-5)
    # what stays keeps its proportions
    for i in kept:
        assert float(after[i]) * mass == pytest.approx(float(before[i]), rel=1e-4, abs=1e-30)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=8).filter(any), st.integers(1, 12))
@example([3, 3, 2, 4], 4)
def test_at_a_tie_with_top_p_the_nucleus_ends_where_a_plain_sum_reaches_it(weights, twelfths):
    row = [weight / sum(weights) for weight in weights]
    held, kept = 0.0, set()
    for token in sorted(range(len(row)), key=lambda token: (-row[token], token)):
        if held < twelfths / 12 and row[token]:
            kept.add(token)
        held += row[token]
    after = nucleus(torch.tensor([row], dtype=torch.float64), twelfths / 12)[0]
    assert {token for token in range(len(row)) if after[token]} == kept


@given(rows, uniform)
def test_a_nucleus_of_everything_changes_nothing(logits, u):
    assert torch.equal(nucleus(chances(logits), 1.0), chances(logits))
    whole = Sampling(temperature=0.7, top_p=1.0)
    assert chosen(logits, whole, u) == int(
        drawn((torch.tensor([logits]) - max(logits)).double().div(0.7).softmax(1), [u])[0]
    )


@given(rows, uniform)
def test_a_tiny_nucleus_is_greedy(logits, u):
    best = chosen(logits, Sampling())
    made = chosen(logits, Sampling(temperature=1.0, top_p=1e-6), u)
    assert chances(logits)[0, made] == chances(logits)[0, best]


@given(rows, st.sampled_from([1e-60, 5e-324]), uniform)
def test_a_temperature_towards_zero_tends_to_greedy(logits, temperature, u):
    made = chosen(logits, Sampling(temperature=temperature), u)
    assert logits[made] == max(logits)


@given(rows)
def test_greedy_is_the_largest_logit(logits):
    assert logits[chosen(logits, Sampling())] == max(logits)


@given(rows, st.sets(st.integers(0, SIZE - 1)), st.floats(1, 20))
def test_a_penalty_lowers_what_was_said_and_nothing_else(logits, said, penalty):
    flags = torch.zeros(1, SIZE, dtype=torch.bool)
    flags[0, list(said)] = True
    before = torch.tensor([logits])
    after = penalised(before, flags, penalty)
    assert torch.equal(penalised(before, flags, 1.0), before)
    for i in range(SIZE):
        if i in said:
            assert after[0, i] <= before[0, i]
        else:
            assert after[0, i] == before[0, i]


def test_the_largest_penalty_leaves_every_logit_a_number():
    logits, said = [1e30, -1e30, 0.0, 1e-30, -1e-30, 5.0, -5.0], range(SIZE)
    largest = Sampling(temperature=1.0, repetition_penalty=100)
    flags = torch.ones(1, SIZE, dtype=torch.bool)
    assert penalised(torch.tensor([logits]), flags, largest.repetition_penalty).isfinite().all()
    assert chosen(logits, largest, said=said) == 0


def test_a_penalty_changes_what_greedy_says():
    logits = [3.0, 2.0, 0.0, 0.0, 0.0, 0.0, -1.0]
    assert chosen(logits, Sampling(repetition_penalty=2.0), said=[0]) == 1
    assert chosen(logits, Sampling(repetition_penalty=2.0)) == 0


@given(
    rows,
    st.sets(st.integers(0, SIZE - 1), max_size=SIZE - 1),
    st.floats(0, 5),
    shares,
    uniform,
)
def test_barred_tokens_never_come(logits, barred, temperature, top_p, u):
    sampling = Sampling(temperature, top_p, 1.3)
    assert chosen(logits, sampling, u, said=range(3), barred=barred) not in barred


@given(rows, uniform)
def test_a_draw_is_where_the_sum_passes_the_uniform(logits, u):
    row = chances(logits).double()
    made = int(drawn(row, [u])[0])
    sums = [math.fsum(row[0, : i + 1].tolist()) for i in range(SIZE)]
    assert row[0, made] > 0
    point = u * sums[-1]  # probabilities of float32 sum to 1 within 1e-7 alone
    assert sums[made] >= point - 1e-9
    assert made == 0 or sums[made - 1] <= point + 1e-9


def test_the_largest_uniform_below_one_never_draws_an_impossible_token():
    row = torch.tensor([[0.1] * 5 + [0.5, 0.0]])
    assert int(drawn(row, [math.nextafter(1, 0)])[0]) == 5
    assert int(drawn(torch.tensor([[0.0, 1.0, 0.0]]), [0.0])[0]) == 1


def test_draws_have_the_probabilities_asked_for():
    numbers, logits = stream_of(3), torch.tensor([[0.0, 1.0, 2.0]])
    uniforms = [numbers.random() for _ in range(20_000)]
    made = drawn((logits / 0.5).softmax(1).expand(20_000, 3), uniforms)
    seen = torch.bincount(made, minlength=3) / 20_000
    # four standard deviations of a share are below 0.0142
    assert torch.allclose(seen, (logits / 0.5).softmax(1)[0], atol=0.0142)


def test_the_numbers_of_a_reply_depend_on_seed_and_number_alone():
    def first(*name):
        numbers = stream_of(*name)
        return [numbers.random() for _ in range(3)]

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(*name)) for name in ((1, 2), (2, 1), (1, 3), (12, 0), (1, 20))}) == 5
    assert first(None) != first(None)


def test_rows_are_chosen_as_if_each_were_alone():
    logits = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0)) * 3
    said = torch.arange(4)[:, None] == torch.arange(SIZE)
    barred = torch.arange(SIZE) == 6
    uniforms = [0.1, 0.9, 0.5, 0.7]
    for sampling in (Sampling(), Sampling(1.3, 0.8, 1.2)):
        together = next_tokens(logits, sampling, said=said, barred=barred, uniforms=uniforms)
        for i in range(4):
            alone = next_tokens(
                logits[i : i + 1],
                sampling,
                said=said[i : i + 1],
                barred=barred,
                uniforms=uniforms[i : i + 1],
            )
            assert int(alone[0]) == int(together[i])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("repetition_penalty", 0.9),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", 100.5),
        ("repetition_penalty", 1e39),
    ],
)
def test_a_setting_out_of_bounds_is_named_with_its_bounds(field, value):
    with pytest.raises(ConfigError, match=f"{field}: .* must be"):
        Sampling(**{field: value})
