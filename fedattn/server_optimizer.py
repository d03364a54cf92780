"""What the server makes of a round's mean: FedAvg, FedAvgM or FedAdam (Reddi et al. 2021).

Post-processing of what was released: it costs no privacy. The mean update is taken as minus a
gradient and handed to a torch optimizer (arXiv 2003.00295, Algorithm 2; Hsu et al. 2019, arXiv
1909.06335 for FedAvgM). FedAvg is plain SGD: with learning rate 1 it adds the mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedattn.config import TrainConfig

_LAST = 0.1  # of the learning rate, in the last round of a linear schedule


class ServerOptimizer:
    """Moves the model's vector (d,) along mean updates; its state lasts for a run.

    >>> from fedattn.config import TrainConfig
    >>> ServerOptimizer(TrainConfig()).step(torch.zeros(2), torch.tensor([1.0, -2.0]).double())
    tensor([ 1., -2.])
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._vector: torch.nn.Parameter | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def step(self, vector: Tensor, mean: Tensor, number: int = 1) -> Tensor:
        """The next model (d,) float32 from `vector` (d,) and the mean update (d,) float64.

        `number` is the round's, from 1: the schedule depends on nothing else.
        """
        if self._vector is None or self._optimizer is None:
            self._vector = torch.nn.Parameter(vector.double())
            self._optimizer = self._make(self._vector)
        with torch.no_grad():
            self._vector.copy_(vector)
        self._vector.grad = -mean
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(number)
        self._optimizer.step()
        return self._vector.detach().float()

    def rate(self, number: int) -> float:
        """The learning rate of round `number`, from 1.

        >>> from fedattn.config import TrainConfig
        >>> falling = ServerOptimizer(TrainConfig(rounds=4, server_schedule="linear"))
        >>> [round(falling.rate(number), 2) for number in (1, 2, 3, 4)]
        [1.0, 0.7, 0.4, 0.1]
        """
        full, rounds = self.config.server_learning_rate, self.config.rounds
        if self.config.server_schedule == "constant" or rounds == 1:
            return full
        return full * (1 - (1 - _LAST) * (number - 1) / (rounds - 1))

    @property
    def moments(self) -> int:
        """How many vectors (d,) float64 the state holds, once a step was made."""
        return {"fedavg": 0, "fedavgm": 1, "fedadam": 2}[self.config.server_optimizer]

    @property
    def state(self) -> dict[str, Tensor]:
        """What earlier steps left behind, by torch's names; with it `resume` goes on as before."""
        if self._vector is None or self._optimizer is None:
            return {}
        kept = self._optimizer.state[self._vector]
        return {name: value for name, value in kept.items() if isinstance(value, Tensor)}

    def resume(self, vector: Tensor, state: Mapping[str, Tensor]) -> None:
        """Go on from a model (d,) and the `state` that its last step left."""
        self._vector = torch.nn.Parameter(vector.double())
        self._optimizer = self._make(self._vector)
        if state:
            self._optimizer.state[self._vector] = {k: v.clone() for k, v in state.items()}

    def _make(self, vector: torch.nn.Parameter) -> torch.optim.Optimizer:
        config = self.config
        rate = config.server_learning_rate
        if config.server_optimizer == "fedadam":
            return torch.optim.Adam(
                [vector],
                lr=rate,
                betas=(config.server_momentum, config.server_beta2),
                eps=config.server_adaptivity,
            )
        momentum = config.server_momentum if config.server_optimizer == "fedavgm" else 0.0
        return torch.optim.SGD([vector], lr=rate, momentum=momentum)
