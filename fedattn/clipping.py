"""Per-record gradients, clipped and noised: Opacus's hooks and DPOptimizer, built directly.

`PrivacyEngine.make_private` derives sampling rate and divisor from the private data size and
draws noise from an ordinary generator. Here both are public and the noise is a CSPRNG's.
DP-SGD: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedattn.model import AttentionGenerator, RelativePositionBias
from fedattn.parameters import NUM_BUCKETS
from fedattn.randomness import Randomness

# Norms, clipping and sums are float64; a record is clipped to C (1 - CLIP_MARGIN), which leaves
# C CLIP_MARGIN for the rest of the arithmetic. With u = 2^-24, float32's rounding, two sums of B
# and B + 1 records differ from what exact arithmetic gives by
# - the float64 sum: at most B^2 2^-53 C, nothing (1e-8 C for B = 10^4);
# - leaving as float32 (one-step rounds): u |sum| <= u B C each, so at most 2 u B C, which stays
#   within the margin up to B = 8,000 records of one device that all point one way. Where the
#   device adds its own noise the sum is rounded after it: post-processing, no cost;
# - the passes: the other records' float32 gradients move when padding or physical batches shift.
#   A clipped gradient moves by up to 2 e C, e being the relative error of its pass (below 1e-5 in
#   tests/test_clipping.py), so B of them by 2 e B C at worst and 2 e sqrt(B) C where errors are
#   independent. No proof bounds e: tests/test_sensitivity.py measures how much of the margin is
#   used [0.4 % by 1,000 equal records, 0.01 % by 48 real conversations], and the rest is the
#   floating-point assumption of DESIGN section 4.
CLIP_MARGIN = 1e-3
_COLUMNS = 1 << 13  # of gradients made float64 at once: they stay in the second-level cache


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


class ClippedSum:
    """The sum over records of their gradients, each clipped over all `parameters` at once.

    A record's gradient g counts as g min(1, clip_norm (1 - CLIP_MARGIN) / |g|), and as zero if
    any of it is not finite. Sums are float64 and kept on the parameters as `summed_grad`, where
    DPOptimizer looks for them; None until something is added.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], clip_norm: float) -> None:
        self.parameters = cast(Sequence[Any], parameters)
        self.clip_norm = clip_norm
        self.forget()

    def add(self) -> None:
        """Add the records in `grad_sample` (B, ...); all sums change or, on an exception, none."""
        samples = [p.grad_sample.detach().flatten(1) for p in self.parameters]  # (B, d_p)
        squares = [p.double().square().sum(1) for s in samples for p in s.split(_COLUMNS, 1)]
        norms = torch.stack(squares).sum(0).sqrt()  # (B,); no float32's square overflows
        shares = (self.clip_norm * (1 - CLIP_MARGIN) / norms).clamp(max=1.0)
        finite = norms.isfinite()
        if not finite.all():  # (taken out, since 0 * NaN is NaN)
            samples, shares = [s[finite] for s in samples], shares[finite]
        totals = []
        for parameter, sample in zip(self.parameters, samples, strict=True):
            total = torch.cat([shares @ part.double() for part in sample.split(_COLUMNS, 1)])
            before = parameter.summed_grad
            total = total.view(parameter.shape)
            totals.append(total if before is None else before + total)
        for parameter, total in zip(self.parameters, totals, strict=True):
            parameter.summed_grad = total

    def accumulate(self) -> None:
        """Add one physical batch and drop its per-record gradients."""
        self.add()
        for parameter in self.parameters:
            parameter.grad_sample = parameter.grad = None

    def vector(self) -> Tensor:
        """The sum, flattened in the order of `parameters`: (d,) float64 on the CPU."""
        parts = [
            torch.zeros(p.numel(), dtype=torch.float64, device=p.device)
            if p.summed_grad is None
            else p.summed_grad.flatten()
            for p in self.parameters
        ]
        return torch.cat(parts).cpu()  # (one copy from the device, not one a parameter)

    def forget(self) -> None:
        """Start from an empty sum."""
        for parameter in self.parameters:
            parameter.summed_grad = None


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
        """Clip and sum in float64 (`ClippedSum`), where Opacus does in the gradients' type."""
        self._clipped.add()

    def add_noise(self) -> None:
        """Noise from the CSPRNG; the noised sum is the first thing rounded to float32."""
        for parameter in self.params:
            noise = torch.from_numpy(self._randomness.gaussian(parameter.numel()))
            noise = (noise * self._noise_std).to(parameter.device).view_as(parameter)
            parameter.grad = (parameter.summed_grad + noise).to(parameter.dtype)
