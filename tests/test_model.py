"""The attention generator: distances, masks, causality, tied weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedattn.model import (
    MAX_DISTANCE,
    count_parameters,
    distance_buckets,
    trainable_names,
)
from fedattn.parameters import NUM_BUCKETS


def slow_bucket(distance: int, *, bidirectional: bool) -> int:
    """Raffel et al. 2020 in integers: the largest k with (d/e)^(n-e) >= (MAX_DISTANCE/e)^k."""
    n, offset = NUM_BUCKETS, 0
    if bidirectional:
        n //= 2
        offset = n if distance < 0 else 0
        distance = abs(distance)
    distance = max(distance, 0)
    e = n // 2
    if distance < e:
        return offset + distance
    k = 0
    while distance ** (n - e) * e ** (k + 1) >= MAX_DISTANCE ** (k + 1) * e ** (n - e):
        k += 1
    return offset + min(e + k, n - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_match_the_slow_twin_at_every_distance(bidirectional):
    places = torch.arange(400)
    buckets = distance_buckets(places, places + 100, bidirectional=bidirectional)
    for query in range(0, 400, 7):
        for key in range(0, 400, 3):
            twin = slow_bucket(query - key - 100, bidirectional=bidirectional)
            assert buckets[query, key] == twin


@given(st.integers(-(10**6), 10**6), st.booleans())
def test_buckets_are_in_range_and_far_distances_share_one(distance, bidirectional):
    def bucket(d):
        return int(
            distance_buckets(torch.tensor([d]), torch.tensor([0]), bidirectional=bidirectional)
        )

    assert 0 <= bucket(distance) < NUM_BUCKETS
    assert bucket(distance) <= bucket(distance + 1) or distance < 0
    if distance >= MAX_DISTANCE:
        assert bucket(distance) == bucket(MAX_DISTANCE)


def tokens_of(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 257, (1, count), generator=torch.Generator().manual_seed(seed))


def padded(model, rows: list[torch.Tensor], extra: int = 0) -> torch.Tensor:
    """Rows of token ids, padded on the left to one width."""
    width = max(row.shape[1] for row in rows) + extra
    out = torch.full((len(rows), width), model.pad)
    for index, row in enumerate(rows):
        out[index, width - row.shape[1] :] = row[0]
    return out


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extra", [0, 1, 9, 40])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_padded_context_gives_the_logits_of_the_unpadded_one(generator, extra, layers):
    model = generator(encoder_layers=layers, decoder_layers=layers)
    contexts = [tokens_of(n, n) for n in (1, 2, 5, 11)]
    replies = torch.cat([tokens_of(6, 50 + n) for n in range(4)])
    together = model(padded(model, contexts, extra), replies)
    for row, context in enumerate(contexts):
        assert same(together[row], model(context, replies[row : row + 1])[0])


def test_padding_after_a_reply_changes_nothing_before_it(generator):
    model, context, reply = generator(), tokens_of(5, 0), tokens_of(4, 1)
    longer = torch.cat([reply, torch.full((1, 7), model.pad)], 1)
    assert same(model(context, longer)[:, :4], model(context, reply))


@given(place=st.integers(0, 7), token=st.integers(0, 261), seed=st.integers(0, 5))
def test_a_later_token_never_changes_an_earlier_logit(place, token, seed):
    model, context = _causal_model(), tokens_of(4, seed)
    reply = tokens_of(8, seed + 100)
    changed = reply.clone()
    changed[0, place] = token
    before, after = model(context, reply), model(context, changed)
    assert torch.equal(before[:, :place], after[:, :place])
    if token != int(reply[0, place]):
        assert not torch.equal(before[:, place:], after[:, place:])


def _causal_model():
    from fedattn.config import Architecture
    from fedattn.model import AttentionGenerator

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AttentionGenerator(
            Architecture(
                vocab_size=257, d_model=8, heads=2, encoder_layers=1, decoder_layers=2,
                context_tokens=8, reply_tokens=8,
            )
        ).eval()  # fmt: skip


def test_a_short_reply_is_scored_as_the_start_of_a_long_one(generator):
    model, context, reply = generator(decoder_layers=2), tokens_of(5, 0), tokens_of(9, 1)
    whole = model(context, reply)
    for length in range(1, 9):
        assert same(model(context, reply[:, :length]), whole[:, :length])


def test_attention_rows_sum_to_one_and_see_no_padding_and_no_future(generator):
    model = generator(encoder_layers=2, decoder_layers=2)
    context = padded(model, [tokens_of(n, n) for n in (2, 7, 4)], extra=3)
    reply = torch.cat([tokens_of(6, n) for n in range(3)])
    logits, attention = model.attend(context, reply)
    assert torch.equal(logits, model(context, reply))
    padding = (context == model.pad)[:, None, None, :]
    future = torch.ones(6, 6).triu(1).bool()
    assert [len(part) for part in (attention.encoder, attention.decoder, attention.cross)] == [
        2
    ] * 3
    for weights in (*attention.encoder, *attention.decoder, *attention.cross):
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-6)
        assert (weights >= 0).all()
    for weights in (*attention.encoder, *attention.cross):
        assert (weights.masked_select(padding.expand_as(weights)) == 0).all()
    for weights in attention.decoder:
        assert (weights[..., future] == 0).all()


def test_an_all_padding_context_gives_finite_logits(generator):
    model = generator()
    context = padded(model, [tokens_of(4, 0)])
    context = torch.cat([context, torch.full_like(context, model.pad)])
    logits = model(context, tokens_of(3, 1).expand(2, -1))
    assert logits.isfinite().all()
    assert same(logits[:1], model(context[:1], tokens_of(3, 1)))


@torch.no_grad()
def test_attention_is_softmax_of_scores_plus_bias(generator):
    """One head's weights, entry by entry, from the formula of DESIGN section 2."""
    model = generator()
    context = tokens_of(5, 0)
    layer = model.encoder[0]
    h = layer.norm_attention(model.embedding(context))[0]
    q, k = layer.attention.query(h), layer.attention.key(h)
    _, attention = model.attend(context, tokens_of(2, 1))
    size = model.shape.d_model // model.shape.heads
    for head in range(model.shape.heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(5):
            scores = [
                float(q[i, part] @ k[j, part]) / math.sqrt(size)
                + float(layer.attention.bias.weight[slow_bucket(i - j, bidirectional=True), head])
                for j in range(5)
            ]
            total = sum(map(math.exp, scores))
            for j in range(5):
                expected = math.exp(scores[j]) / total
                assert float(attention.encoder[0][0, head, i, j]) == pytest.approx(expected, 1e-4)


def test_only_the_distance_matters_to_the_bias(generator):
    """Cross-attention of reply token t to slot s uses b[(S - s) + t], for padded rows as well."""
    model = generator()
    bias = model.decoder[0].cross.bias.weight
    context, reply = tokens_of(4, 0), tokens_of(3, 1)
    _, before = model.attend(context, reply)
    with torch.no_grad():
        bias[slow_bucket(2, bidirectional=False)] += 50.0
    _, after = model.attend(padded(model, [context], extra=6), reply)
    for t, s in [(0, 2), (1, 3)]:  # (4 - s) + t = 2
        assert (after.cross[0][0, :, t, 6 + s] > 0.99).all()
    assert torch.allclose(after.cross[0][0, :, 2, 6:], before.cross[0][0, :, 2], atol=1e-5)


def test_input_and_output_embedding_are_one_parameter(generator):
    model = generator()
    assert model.head.weight is model.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "embedding.weight" in names
    assert "head.weight" not in names
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())


def test_trainable_names_are_all_or_biases_and_norms(generator):
    model = generator()
    every = trainable_names(model, "all")
    assert every == [name for name, _ in model.named_parameters()]
    few = trainable_names(model, "bias_norm")
    matrices = {name for name in every if name not in few}
    assert matrices == {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "attention.bias" not in name and "cross.bias" not in name
    }
    assert [name for name in every if name in few] == few
    biases = {"encoder.0.attention", "decoder.0.attention", "decoder.0.cross"}
    assert {f"{name}.bias.weight" for name in biases} <= set(few)


def test_a_fresh_model_starts_without_bias_by_distance_and_near_uniform():
    from fedattn.config import Architecture
    from fedattn.model import AttentionGenerator

    torch.manual_seed(0)
    model = AttentionGenerator(Architecture(vocab_size=300, d_model=32, heads=4))
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith("bias.weight"))
    logits = model(tokens_of(6, 0), tokens_of(4, 1))
    assert logits.shape == (1, 4, 305)
    entropy = torch.distributions.Categorical(logits=logits).entropy() / math.log(305)
    assert (entropy > 0.85).all()
