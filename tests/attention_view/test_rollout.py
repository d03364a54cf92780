"""Rollout obeys its laws and is what the slow sum over paths says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedattn.attention_view.rollout import rollout


def stochastic(rng, *shape, causal=False):
    scores = rng.normal(size=shape) * 2
    if causal:
        scores = np.where(np.tril(np.ones(shape[-2:])) > 0, scores, -np.inf)
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


def slow(encoder, decoder, cross):
    """Entry by entry: where a walker ends who goes back from each reply place.

    At every residual stream the walker stays with probability 1/2 or follows attention; one that
    reaches the reply's own input counts no more.
    """
    length, slots = cross[0].shape[-2:]

    def memory(layer, place):
        if layer < 0:
            return np.eye(slots)[place]
        weights = encoder[layer].mean(0)
        stays = 0.5 * memory(layer - 1, place)
        return stays + sum(0.5 * weights[place, s] * memory(layer - 1, s) for s in range(slots))

    def stream(layer, place):
        if layer < 0:
            return np.zeros(slots)
        own, across = decoder[layer].mean(0), cross[layer].mean(0)
        before = 0.5 * stream(layer - 1, place)
        before = before + sum(0.5 * own[place, t] * stream(layer - 1, t) for t in range(length))
        seen = sum(across[place, s] * memory(len(encoder) - 1, s) for s in range(slots))
        return 0.5 * before + 0.5 * seen

    rows = np.array([stream(len(decoder) - 1, place) for place in range(length)])
    return rows / rows.sum(1, keepdims=True)


def as_tensors(*parts):
    return [[torch.tensor(each) for each in part] for part in parts]


@pytest.mark.parametrize(("layers", "decoder_layers"), [(1, 1), (3, 2), (2, 3), (0, 1)])
def test_rollout_is_the_slow_walk_and_its_rows_sum_to_one(layers, decoder_layers):
    rng = np.random.default_rng(layers * 10 + decoder_layers)
    encoder = [stochastic(rng, 2, 4, 4) for _ in range(layers)]
    decoder = [stochastic(rng, 2, 3, 3, causal=True) for _ in range(decoder_layers)]
    cross = [stochastic(rng, 2, 3, 4) for _ in range(decoder_layers)]
    found = rollout(*as_tensors(encoder, decoder, cross)).numpy()
    np.testing.assert_allclose(found, slow(encoder, decoder, cross), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (found >= 0).all()


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_identity_attention_gives_identity(layers):
    one = [torch.eye(4).expand(2, 4, 4)] * layers
    assert torch.equal(rollout(one, one, one), torch.eye(4, dtype=torch.float64))


def test_one_layer_without_encoder_is_cross_attention():
    rng = np.random.default_rng(5)
    own, cross = stochastic(rng, 2, 3, 3, causal=True), stochastic(rng, 2, 3, 6)
    found = rollout(*as_tensors([], [own], [cross])).numpy()
    np.testing.assert_allclose(found, cross.mean(0), atol=1e-12)


def test_the_future_of_a_reply_changes_no_earlier_row():
    rng = np.random.default_rng(6)
    encoder = [stochastic(rng, 2, 4, 4)]
    decoder = [stochastic(rng, 2, 3, 3, causal=True) for _ in range(2)]
    cross = [stochastic(rng, 2, 3, 4) for _ in range(2)]
    whole = rollout(*as_tensors(encoder, decoder, cross))
    part = rollout(*as_tensors(encoder, [d[:, :2, :2] for d in decoder], [c[:, :2] for c in cross]))
    torch.testing.assert_close(part, whole[:2])
