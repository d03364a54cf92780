"""The measure finds what is so: on a copy task, on a model that ignores its context, by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedattn.attention_view.faithfulness import RULES, Ablation, ablation, compare, faithfulness
from fedattn.batches import IGNORED, Pair, collate
from fedattn.errors import AttentionError

KEYS, NOISE = range(30, 38), range(100, 140)


def copying(tokenizer, count, seed):
    """Three turns of two tokens; one of the six is a key, and the reply is that key."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        words = rng.sample(NOISE, 6)
        words[rng.randrange(6)] = key = rng.choice(KEYS)
        context = [
            token
            for turn in range(3)
            for token in (
                (tokenizer.me, tokenizer.you)[turn % 2],
                *words[2 * turn : 2 * turn + 2],
            )
        ]
        made.append(Pair(context, [key, tokenizer.eos]))
    return made


@pytest.fixture(scope="module")
def copier():
    """A small generator that has learned to copy the key, with the loss it ended at."""
    from fedattn.config import Architecture
    from fedattn.model import AttentionGenerator
    from fedattn.tokens import Tokenizer
    from tests.conftest import SHAPE

    tokenizer = Tokenizer(SHAPE["vocab_size"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AttentionGenerator(Architecture(**{**SHAPE, "d_model": 32}))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loss = math.inf
    for step in range(150):
        data = collate(copying(tokenizer, 16, step), tokenizer)
        logits = model(data.context, data.tokens)
        value = F.cross_entropy(logits.flatten(0, 1), data.targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        loss = float(value.detach())
    return model.eval(), tokenizer, loss


def test_on_a_copy_task_the_most_attended_turn_is_the_one_that_matters(copier):
    model, tokenizer, loss = copier
    assert loss < 0.1  # else nothing was learned and there is nothing to find
    found = faithfulness(model, tokenizer, copying(tokenizer, 60, 999))
    by_rule = {each.rule: each for each in found.comparisons}
    assert found.examples == 60
    for rule in ("mean", "rollout"):
        assert by_rule[rule].chosen_hurts_more.value > 0.9
        assert by_rule[rule].difference.low > 0.5
        assert by_rule[rule].fall_chosen > 10 * abs(by_rule[rule].fall_other)
    # the key is in the last turn every third time, and turns are of one length
    assert by_rule["last"].chosen_hurts_more.value < 0.8
    assert by_rule["mean"].chosen_is_last == pytest.approx(1 / 3, abs=0.2)


def test_a_model_that_ignores_its_context_loses_nothing(generator, tokenizer):
    model = generator()
    with torch.no_grad():
        for layer in model.decoder:
            layer.cross.out.weight.zero_()
    found = faithfulness(model, tokenizer, copying(tokenizer, 10, 1))
    for each in found.comparisons:
        assert each.fall_chosen == each.fall_other == 0
        assert (each.difference.low, each.difference.value, each.difference.high) == (0, 0, 0)
        assert each.chosen_hurts_more.value == 0.5


def test_falls_are_those_of_plain_scores(generator, tokenizer):
    model = generator(1)
    you, me = tokenizer.you, tokenizer.me
    turns = [[5, 6], [me, 7], [you, 8, 9]]  # the oldest lost its marker to the window
    example = Pair([token for turn in turns for token in turn], [50, 51, tokenizer.eos])

    def nats(kept):
        context = torch.tensor([[token for turn in kept for token in turn]])
        logits = model(context, torch.tensor([[tokenizer.bos, 50, 51]]))[0]
        return -float(sum(logits.log_softmax(-1)[i, t] for i, t in enumerate(example.reply)))

    with torch.no_grad():
        expected = [nats(turns[:k] + turns[k + 1 :]) - nats(turns) for k in range(3)]
    found = ablation(model, tokenizer, example)
    assert found.falls == pytest.approx(expected, abs=1e-5)
    assert (found.tokens, found.bytes) == (3, len(tokenizer.decode([50, 51]).encode()))
    assert found.scores["longest"] == (2, 2, 3)
    for method in ("mean", "rollout"):
        assert sum(found.scores[method]) == pytest.approx(3)  # a row sums to 1, and there are 3


def by_hand():
    """Two examples; rule `mean` picks turn 0 of the first and turn 2 of the second."""
    same = {"rollout": (0.0, 1.0), "last": (0.0, 1.0), "longest": (1.0, 1.0)}
    first = Ablation((4.0, 1.0), {**same, "mean": (0.9, 0.1)}, tokens=2, bytes=4)
    same = dict.fromkeys(RULES, (0.0, 0.0, 1.0))
    return [first, Ablation((3.0, 0.0, 1.0), same, tokens=4, bytes=8)]


def test_the_numbers_are_those_of_a_small_example_done_by_hand():
    found = compare(by_hand(), "mean")
    assert found.fall_chosen == pytest.approx((4 / 2 + 1 / 4) / 2)
    assert found.fall_other == pytest.approx((1 / 2 + 1.5 / 4) / 2)
    assert found.difference.value == pytest.approx((3 / 2 - 0.5 / 4) / 2)
    assert found.bits_per_byte.value == pytest.approx((3 - 0.5) / math.log(2) / 12)
    assert found.chosen_hurts_more.value == pytest.approx((1 + 0.5) / 2)
    assert found.chosen_is_last == 0.5


def test_of_equal_turns_the_newest_is_chosen():
    assert compare(by_hand()[:1], "longest").fall_chosen == 1 / 2


def test_the_interval_is_seeded_covers_the_mean_and_narrows():
    rng = np.random.default_rng(0)
    scores = dict.fromkeys(RULES, (0.0, 1.0))
    many = [Ablation((0.0, float(x)), scores, 1, 1) for x in rng.normal(1, 1, 400)]
    few = compare(many[:25], "mean", seed=7).difference
    all_of_them = compare(many, "mean", seed=7).difference
    assert compare(many, "mean", seed=7).difference == all_of_them
    assert compare(many, "mean", seed=8).difference != all_of_them
    assert all_of_them.low < all_of_them.value < all_of_them.high
    width = all_of_them.high - all_of_them.low
    assert width == pytest.approx(2 * 1.96 / 20, rel=0.2)  # of a normal mean
    assert few.high - few.low > 2 * width


def test_own_replies_are_those_that_the_model_gives(copier):
    model, tokenizer, _ = copier
    wrong = [Pair(context, [200]) for context, _ in copying(tokenizer, 20, 5)]
    own = faithfulness(model, tokenizer, wrong, replies="own").comparisons[0]
    assert own.chosen_hurts_more.value > 0.9


def test_one_turn_has_nothing_to_compare_with(generator, tokenizer):
    with pytest.raises(AttentionError, match="two turns"):
        faithfulness(generator(), tokenizer, [Pair([tokenizer.you, 5], [6])])


def test_an_ablation_prints_nothing_of_a_conversation():
    assert repr(by_hand()[0]) == "Ablation(<omitted>)"
