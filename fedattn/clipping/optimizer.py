"""Opacus's DPOptimizer, built directly: public divisor, CSPRNG noise.

`PrivacyEngine.make_private` derives sampling rate and divisor from the private data size and
draws noise from an ordinary generator. Here both are public and the noise is a CSPRNG's.
DP-SGD: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1.
"""

from __future__ import annotations

from typing import Final

import torch
from opacus.optimizers import DPOptimizer

from fedattn.clipping.clipped_sum import ClippedSum
from fedattn.noise import add_gaussian_to
from fedattn.randomness import Randomness

_SMALL: Final = 1 << 14


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's DPOptimizer with a public divisor, CSPRNG noise and no way out for NaN.

    A step adds N(0, (noise_multiplier * clip_norm)^2) per coordinate to the sum of gradients
    clipped to `clip_norm` each, and divides by the public `expected_batch_size`. A record whose
    gradient is not finite counts as zero; the step itself always happens.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clipped: ClippedSum,
        *,
        noise_multiplier: float,
        expected_batch_size: int,
        randomness: Randomness,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clipped.clip_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._clipped = clipped
        self._noise_std = noise_multiplier * clipped.clip_norm
        self._randomness = randomness

    def finish_step(self) -> None:
        """Add noise to what was accumulated (nothing, for an empty batch) and move."""
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
        self.step()
        self.zero_grad(set_to_none=True)

    def clip_and_accumulate(self) -> None:
        """Clip and sum as `ClippedSum` does, where Opacus does in the gradients' type."""
        self._clipped.add()
        for parameter in self.params:
            if parameter.summed_grad is None:  # an empty batch
                parameter.summed_grad = torch.zeros_like(parameter)

    def add_noise(self) -> None:
        """Noise from the CSPRNG on the whole sum, in place, on the grid of `noise.add_gaussian`."""
        large = [p for p in self.params if p.numel() >= _SMALL]
        small = [p for p in self.params if p.numel() < _SMALL]  # together: each array has a price
        sums = [p.summed_grad.cpu().contiguous().view(-1) for p in large]
        if small:
            sums.append(torch.cat([p.summed_grad.flatten().double().cpu() for p in small]))
        threads = torch.get_num_threads()
        arrays = [each.numpy() for each in sums]
        add_gaussian_to(arrays, self._noise_std, self._randomness, threads=threads)
        parts = sums[: len(large)]
        if small:
            parts += torch.split(sums[-1], [p.numel() for p in small])
        for parameter, part in zip([*large, *small], parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.device, parameter.dtype)
