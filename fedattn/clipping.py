"""Per-record gradients, clipped and noised: Opacus's hooks and DPOptimizer, built directly.

`PrivacyEngine.make_private` derives sampling rate and divisor from the private data size and
draws noise from an ordinary generator. Here both are public and the noise is a CSPRNG's.
DP-SGD: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedattn.model import NUM_BUCKETS, AttentionGenerator, RelativePositionBias
from fedattn.randomness import Randomness

# Clipping to C (1 - CLIP_MARGIN) leaves room for float32: a norm over d numbers is off by about
# sqrt(d) 2^-24 of itself, a sum over B records by at most B^2 2^-24 C (each of B additions rounds
# a sum of at most B C), which stays below the margin for batches of up to about 120 records in the
# worst case and for thousands typically, as errors of both signs cancel.
CLIP_MARGIN = 1e-3


@register_grad_sampler(RelativePositionBias)  # type: ignore[untyped-decorator]
def _bias_grad_sample(
    layer: RelativePositionBias, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Sum the score gradients (B, H, T, S) over places of one bucket: (B, NUM_BUCKETS, H)."""
    flat = backprops.flatten(2)  # (B, H, T * S)
    sums = flat.new_zeros(*flat.shape[:2], NUM_BUCKETS)
    return {layer.weight: sums.index_add_(2, activations[0].flatten(), flat).transpose(1, 2)}


class PerRecordGradients:
    """Opacus's hooks on a model, with a way back to a clean state after a failed pass."""

    def __init__(self, model: AttentionGenerator) -> None:
        self.model = model
        self._module = GradSampleModule(model, loss_reduction="sum", strict=True)
        # A frozen embedding's output carries no gradient; Opacus's backward hooks on the first
        # norm need one to fire on.
        self._needs_grad = model.embedding.register_forward_hook(
            lambda _module, _inputs, output: (
                output
                if output.requires_grad or not torch.is_grad_enabled()
                else output.requires_grad_()
            )
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, tied ones once."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def losses_backward(self, losses: Tensor) -> None:
        """Fill `grad_sample` (B, ...) of every trainable parameter from losses (B,)."""
        with warnings.catch_warnings():
            # True of the embedding, whose input is token ids, and harmless there.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            torch.autograd.backward(losses.sum())

    def reset(self) -> None:
        """Forget everything a pass left behind, whether it ended or raised."""
        for module in self.model.modules():
            for name in ("activations", "max_batch_len"):
                if hasattr(module, name):
                    delattr(module, name)
        for parameter in self.model.parameters():
            parameter.grad = None
            state = cast(Any, parameter)
            state.grad_sample = None
            state._forward_counter = 0
            if hasattr(parameter, "_current_grad_sample"):
                del state._current_grad_sample

    def close(self) -> None:
        """Remove the hooks."""
        self._needs_grad.remove()
        self._module.to_standard_module()


@contextmanager
def per_record_gradients(model: AttentionGenerator) -> Iterator[PerRecordGradients]:
    """Attach the hooks for the time of a `with` block."""
    gradients = PerRecordGradients(model)
    try:
        yield gradients
    finally:
        gradients.reset()
        gradients.close()


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's DPOptimizer with a public divisor, CSPRNG noise and no way out for NaN.

    A step adds N(0, (noise_multiplier * clip_norm)^2) per coordinate to the sum of gradients
    clipped to `clip_norm` each, and divides by the public `expected_batch_size`. A record whose
    gradient is not finite counts as zero; the step itself always happens.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip_norm: float,
        expected_batch_size: int,
        randomness: Randomness,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm * (1 - CLIP_MARGIN),
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._noise_std = noise_multiplier * clip_norm
        self._randomness = randomness

    def accumulate(self) -> None:
        """Clip the records of one physical batch and add them to the step's sum."""
        self.signal_skip_step(True)
        self.step()
        self.zero_grad(set_to_none=True)

    def finish_step(self) -> None:
        """Add noise to what was accumulated (nothing, for an empty batch) and move."""
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
        self.signal_skip_step(False)
        self.step()
        self.zero_grad(set_to_none=True)

    def clip_and_accumulate(self) -> None:
        """Zero the records whose gradient is not finite, then clip and sum as Opacus does."""
        samples = [parameter.grad_sample for parameter in self.params]
        if len(samples[0]):
            finite = torch.stack([s.flatten(1).isfinite().all(1) for s in samples]).all(0)
            if not finite.all():
                for sample in samples:
                    sample[~finite] = 0.0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Noise from the CSPRNG, in float64 until it is added."""
        for parameter in self.params:
            noise = torch.from_numpy(self._randomness.gaussian(parameter.numel()))
            noise = (noise * self._noise_std).to(parameter.device, torch.float32)
            parameter.grad = (parameter.summed_grad + noise.view_as(parameter)).view_as(parameter)
