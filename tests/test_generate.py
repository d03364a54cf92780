"""Generation is greedy and deterministic; bits per byte is what a slow sum says."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedattn.batches import Pair
from fedattn.generate import bits_per_byte, choose_pairs, context_of, reply, reply_to
from fedattn.growing import grow
from fedattn.sampling import Sampling, stream_of


def slow_reply(model, tokenizer, context, max_tokens):
    """Argmax of a plain full forward pass, token by token."""
    tokens = [tokenizer.bos]
    while len(tokens) <= max_tokens:
        scores = model(torch.tensor([context]), torch.tensor([tokens]))[0, -1].tolist()
        allowed = list(range(tokenizer.vocab_size))
        if len(tokens) > 1:
            allowed.append(tokenizer.eos)
        best = max(allowed, key=lambda token: scores[token])
        if best == tokenizer.eos:
            break
        tokens.append(best)
    return tuple(tokens[1:])


def slow_draws(model, tokenizer, context, max_tokens, sampling, numbers):
    """`slow_reply` for any sampling: probabilities, nucleus and draw by plain sums."""
    ids = []
    while len(ids) < max_tokens:
        scores = model(torch.tensor([context]), torch.tensor([[tokenizer.bos, *ids]]))[0, -1]
        allowed = [*range(tokenizer.vocab_size), *([tokenizer.eos] if ids else [])]
        logits = {token: float(scores[token]) for token in allowed}
        for token in set(ids):
            factor = sampling.repetition_penalty
            logits[token] *= 1 / factor if logits[token] > 0 else factor
        uniform, best = numbers.random(), max(allowed, key=lambda token: logits[token])
        if sampling.temperature:
            weights = {
                token: math.exp((logits[token] - logits[best]) / sampling.temperature)
                for token in allowed
            }
            total, held, kept = math.fsum(weights.values()), 0.0, []
            for token in sorted(allowed, key=lambda token: (-weights[token], token)):
                if held < sampling.top_p * total:
                    kept.append(token)
                held += weights[token]
            point = uniform * math.fsum(weights[token] for token in kept)
            for best in sorted(kept):
                point -= weights[best]
                if point < 0:
                    break
        if best == tokenizer.eos:
            break
        ids.append(best)
    return ids


def push(model, token, amount):
    """Make `token` more likely wherever the model looks."""
    with torch.no_grad():
        model.head.bias[token] += amount
    return model


@pytest.mark.parametrize("seed", range(24))
def test_generation_is_the_argmax_of_plain_forward_passes(generator, tokenizer, seed):
    model = push(generator(seed), tokenizer.eos, 2.0)
    context = [tokenizer.you, 5, 6, 7 + seed, *range(20, 20 + 3 * (seed % 5))]
    with torch.no_grad():
        expected = slow_reply(model, tokenizer, context, 12)
    made = reply(model, tokenizer, context, max_tokens=12)
    assert made.ids == expected
    assert made.text == tokenizer.decode(expected).strip()


@pytest.mark.parametrize("longest", [1, 12])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
@torch.no_grad()
def test_every_reply_of_a_batch_is_drawn_as_plain_forward_passes_of_its_own_draw_it(
    generator, tokenizer, temperature, longest
):
    contexts = [[tokenizer.you, *range(40, 40 + length)] for length in (0, 1, 7, 40)]
    for seed, (top_p, penalty) in enumerate([(1.0, 1.3), (0.9, 1.0), (0.5, 5.0), (0.01, 1.0)]):
        model = push(generator(seed, spread=0.6), tokenizer.eos, 2.0 * (seed % 3))
        sampling = Sampling(temperature, top_p, penalty)
        streams = ([stream_of(seed, number) for number in range(4)] for _ in range(2))
        made = grow(
            model, tokenizer, contexts, max_tokens=longest, sampling=sampling, numbers=next(streams)
        )
        steps = list(made)
        for row, (context, numbers) in enumerate(zip(contexts, next(streams), strict=True)):
            found = [step[row] for step in steps if step[row] is not None]
            assert found == slow_draws(model, tokenizer, context, longest, sampling, numbers)


def test_generation_is_deterministic_and_leaves_the_model_alone(generator, tokenizer):
    model = generator()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = reply_to(model, tokenizer, ["hi", "hello", "how are you"], 9)
    torch.manual_seed(99)
    assert reply_to(model, tokenizer, ["hi", "hello", "how are you"], 9).ids == first.ids
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("special", ["pad", "bos", "me", "you"])
def test_specials_are_never_generated(generator, tokenizer, special):
    model = push(generator(), getattr(tokenizer, special), 1000.0)
    made = reply_to(model, tokenizer, ["hi"], 10)
    assert made.ids
    assert max(made.ids) < tokenizer.vocab_size


def test_a_reply_ends_at_eos_but_has_text_before_it(generator, tokenizer):
    made = reply_to(push(generator(), tokenizer.eos, 1000.0), tokenizer, ["hi"], 10)
    assert len(made.ids) == 1
    assert made.ids[0] < tokenizer.vocab_size


@pytest.mark.parametrize("longest", [0, 1, 5])
def test_a_reply_is_no_longer_than_asked(generator, tokenizer, longest):
    made = reply_to(push(generator(), tokenizer.eos, -1000.0), tokenizer, ["hi"], longest)
    assert len(made.ids) == longest
    # one row of attention for <bos> and each token, over every context token
    assert made.attention.cross[0].shape == (1, 2, longest + 1, len(tokenizer.encode("hi")) + 1)


def test_context_marks_the_last_turn_as_the_others_and_keeps_the_end(tokenizer):
    turns = ["aa", "bb", "cc"]
    ids = [tokenizer.encode(text) for text in turns]
    you, me = tokenizer.you, tokenizer.me
    whole = [you, *ids[0], me, *ids[1], you, *ids[2]]
    assert context_of(turns, tokenizer, 100) == whole
    assert context_of(turns, tokenizer, 4) == whole[-4:]


def test_chosen_pairs_are_the_same_in_every_run_and_depend_on_the_label(make_records, tokenizer):
    records = make_records(20, replies=3)
    first = choose_pairs(records, tokenizer, 12, 15, "test")
    assert first == choose_pairs(records, tokenizer, 12, 15, "test")
    assert choose_pairs(records, tokenizer, 12, 7, "test") == first[:7]
    assert first != choose_pairs(records, tokenizer, 12, 15, "other")
    everything = choose_pairs(records, tokenizer, 12, 1000, "test")
    assert len(everything) == 60
    assert choose_pairs([], tokenizer, 12, 5, "test") == []


@pytest.mark.parametrize("places", [1, 60, 10_000])
def test_bits_per_byte_is_the_slow_sum_over_whole_replies(generator, tokenizer, places):
    model = generator()
    texts = [("hi there", "hello"), ("a", "your name, please? " * 2), ("bb", "好"), ("c", "d")]
    pairs = [
        Pair([tokenizer.you, *tokenizer.encode(a)], [*tokenizer.encode(b), tokenizer.eos])
        for a, b in texts
    ]
    bits = 0.0
    with torch.no_grad():
        for context, ids in pairs:
            inputs = torch.tensor([[tokenizer.bos, *ids[:-1]]])
            logs = model(torch.tensor([context]), inputs)[0].double().log_softmax(-1)
            bits -= sum(float(logs[t, token]) for t, token in enumerate(ids)) / math.log(2)
    size = sum(len(text.encode()) for _, text in texts)
    made = bits_per_byte(model, pairs, tokenizer, places=places)
    assert made.bpb == pytest.approx(bits / size, rel=1e-5)
    assert (made.examples, made.bytes) == (4, size)


def test_examples_of_alike_lengths_are_computed_together_in_bounded_memory(
    generator, tokenizer, monkeypatch
):
    model, rng, seen = generator(), random.Random(0), []
    true_forward = model.forward

    def watch(context, tokens):
        seen.append((len(context), context.shape[1] + tokens.shape[1]))
        return true_forward(context, tokens)

    monkeypatch.setattr(model, "forward", watch)
    pairs = [Pair([5] * rng.randint(1, 12), [7] * rng.choice([1, 2, 3, 9, 90])) for _ in range(60)]
    bits_per_byte(model, pairs, tokenizer, places=100)
    assert sum(rows for rows, _ in seen) == 60
    assert all(rows * length <= 100 or rows == 1 for rows, length in seen)
    computed = sum(rows * length for rows, length in seen)
    assert computed < 1.25 * sum(len(each.context) + len(each.reply) for each in pairs)


def test_no_examples_have_no_bits_per_byte(generator, tokenizer):
    made = bits_per_byte(generator(), [], tokenizer)
    assert math.isnan(made.bpb)
    assert (made.examples, made.bytes) == (0, 0)
