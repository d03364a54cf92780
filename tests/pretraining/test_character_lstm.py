"""The network's port against a slow twin that keeps to Keras's own formulas."""

import numpy as np
import pytest
import torch

from fedattn.errors import DataError
from fedattn.pretraining.character_lstm import NAMES, CharacterLSTM

VOCABULARY, EMBEDDED, UNITS = 11, 5, 3


def random_arrays(seed):
    rng = np.random.default_rng(seed)
    features = EMBEDDED + 2 * UNITS
    shapes = (
        (VOCABULARY, EMBEDDED),
        (EMBEDDED, 4 * UNITS),
        (UNITS, 4 * UNITS),
        (8 * UNITS,),
        (UNITS, 4 * UNITS),
        (UNITS, 4 * UNITS),
        (8 * UNITS,),
        (features, 1),
        (features, VOCABULARY),
        (VOCABULARY,),
    )
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in zip(NAMES, shapes, strict=True)
    }


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow_layer(inputs, kernel, recurrent, bias):
    """One LSTM layer over inputs (T, in), a gate at a time; Keras converts CuDNN's layout so."""

    def gate(weights, g):
        return weights[:, g * UNITS : (g + 1) * UNITS]

    hidden, cell, out = np.zeros(UNITS), np.zeros(UNITS), []
    for x in inputs:
        pre = []
        for g in range(4):
            k = gate(kernel, g)
            w = k.T.reshape(k.shape, order="F")
            b = bias[g * UNITS : (g + 1) * UNITS] + bias[(4 + g) * UNITS : (5 + g) * UNITS]
            pre.append(x @ w + hidden @ gate(recurrent, g).T + b)
        cell = sigmoid(pre[1]) * cell + sigmoid(pre[0]) * np.tanh(pre[2])
        hidden = sigmoid(pre[3]) * np.tanh(cell)
        out.append(hidden)
    return np.array(out)


def slow_scores(arrays, ids):
    """Scores of the next character after the window `ids`."""
    a = [arrays[name].astype(np.float64) for name in NAMES]
    embedded = a[0][ids]
    first = slow_layer(embedded, a[1], a[2], a[3])
    second = slow_layer(first, a[4], a[5], a[6])
    features = np.concatenate([embedded, first, second], 1)
    weight = np.exp(features @ a[7] - (features @ a[7]).max())
    return (features * weight / weight.sum()).sum(0) @ a[8] + a[9]


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_slow_twin_after_every_character(seed):
    arrays = random_arrays(seed)
    network = CharacterLSTM(arrays)
    ids = np.random.default_rng(seed + 100).integers(VOCABULARY, size=(2, 9))
    state = network.start(2)
    for place in range(ids.shape[1]):
        state = network.step(state, torch.from_numpy(ids[:, place]))
        found = network.logits(state).numpy()
        for row in range(2):
            wanted = slow_scores(arrays, ids[row, : place + 1])
            np.testing.assert_allclose(found[row], wanted, rtol=2e-4, atol=2e-5)


def test_streams_do_not_see_each_other():
    network = CharacterLSTM(random_arrays(4))
    together, alone = network.start(2), network.start(1)
    for pair in ([1, 2], [3, 4], [5, 6]):
        together = network.step(together, torch.tensor(pair))
        alone = network.step(alone, torch.tensor(pair[1:]))
    torch.testing.assert_close(network.logits(together)[1:], network.logits(alone))


def test_weights_without_an_array_are_refused_by_its_name():
    arrays = random_arrays(0)
    del arrays[NAMES[4]]
    with pytest.raises(DataError, match="rnn_2/rnn_2/kernel"):
        CharacterLSTM(arrays)
