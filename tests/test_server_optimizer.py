"""FedAvg, FedAvgM and FedAdam against their formulas, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedattn.config import TrainConfig
from fedattn.server_optimizer import ServerOptimizer

MEANS = np.random.default_rng(0).normal(size=(5, 7))


def run(**keys) -> np.ndarray:
    """The model after five rounds, from zero."""
    optimizer, vector = ServerOptimizer(TrainConfig(**keys)), torch.zeros(7)
    for mean in MEANS:
        vector = optimizer.step(vector, torch.from_numpy(mean))
    assert vector.dtype == torch.float32
    return vector.numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_fedavg_adds_the_mean(rate):
    close(run(server_learning_rate=rate), rate * MEANS.sum(0))


def test_fedavgm_adds_a_decaying_sum():
    model, momentum = np.zeros(7), np.zeros(7)
    for mean in MEANS:
        momentum = 0.8 * momentum + mean
        model += 0.5 * momentum
    close(run(server_optimizer="fedavgm", server_momentum=0.8, server_learning_rate=0.5), model)


def test_fedadam_divides_by_the_root_of_the_second_moment():
    model, first, second = np.zeros(7), np.zeros(7), np.zeros(7)
    for t, mean in enumerate(MEANS, 1):
        first = 0.9 * first + 0.1 * mean
        second = 0.99 * second + 0.01 * mean**2
        hat = np.sqrt(second / (1 - 0.99**t)) + 1e-3
        model += 0.05 * first / (1 - 0.9**t) / hat
    keys = {"server_learning_rate": 0.05, "server_adaptivity": 1e-3}
    close(run(server_optimizer="fedadam", server_beta2=0.99, **keys), model)


def test_the_vector_it_is_given_is_where_it_moves_from():
    optimizer = ServerOptimizer(TrainConfig())
    optimizer.step(torch.zeros(2), torch.ones(2).double())
    found = optimizer.step(torch.tensor([5.0, 6.0]), torch.ones(2).double())
    assert found.tolist() == [6.0, 7.0]


def test_a_linear_schedule_hangs_on_the_round_alone():
    keys = {"rounds": 5, "server_schedule": "linear", "server_learning_rate": 0.5}
    optimizer, vector = ServerOptimizer(TrainConfig(**keys)), torch.zeros(7)
    for number, mean in enumerate(MEANS, 1):
        vector = optimizer.step(vector, torch.from_numpy(mean), number)
    rates = 0.5 * (1 - 0.9 * np.arange(5) / 4)
    close(vector.numpy(), (rates[:, None] * MEANS).sum(0))
    late = ServerOptimizer(TrainConfig(**keys))  # as resumed, or after aborted rounds
    moved = late.step(torch.zeros(7), torch.from_numpy(MEANS[0]), 5)
    close(moved.numpy(), 0.05 * MEANS[0])
