"""Per-record gradients by Opacus's hooks: every one of them in memory, after one backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.grad_sample.linear import compute_linear_grad_sample
from torch import Tensor, nn

from fedattn.lora import LowRankLinear
from fedattn.model import AttentionGenerator, RelativePositionBias
from fedattn.parameters import NUM_BUCKETS


@register_grad_sampler(RelativePositionBias)  # type: ignore[untyped-decorator]
def _bias_grad_sample(
    layer: RelativePositionBias, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Sum the score gradients (B, H, T, S) over places of one bucket: (B, NUM_BUCKETS, H)."""
    flat = backprops.flatten(2)  # (B, H, T * S)
    sums = flat.new_zeros(*flat.shape[:2], NUM_BUCKETS)
    return {layer.weight: sums.index_add_(2, activations[0].flatten(), flat).transpose(1, 2)}


# (adds to W x + b what does not depend on W and b; its factors are linear layers themselves)
register_grad_sampler(LowRankLinear)(compute_linear_grad_sample)


class PerRecordGradients:
    """Opacus's hooks on a model, with a way back to a clean state after a failed pass."""

    def __init__(self, model: AttentionGenerator) -> None:
        self.model = model
        self._module = GradSampleModule(model, loss_reduction="sum", strict=True)
        self._needs_grad = model.embedding.register_forward_hook(with_gradient)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, tied ones once."""
        return trainable(self.model)

    def losses_backward(self, losses: Tensor) -> None:
        """Fill `grad_sample` (B, ...) of every trainable parameter from losses (B,)."""
        with warnings.catch_warnings():
            # True of the embedding, whose input is token ids, and harmless there.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            torch.autograd.backward(losses.sum())

    def reset(self) -> None:
        """Forget everything a pass left behind, whether it ended or raised."""
        forget_pass(self.model)

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


def with_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """A frozen embedding's output carries no gradient; hooks on the first norm need one."""
    if output.requires_grad or not torch.is_grad_enabled():
        return output
    return output.requires_grad_()


def forget_pass(model: nn.Module) -> None:
    """Remove what Opacus's hooks left on layers and parameters."""
    for module in model.modules():
        for name in ("activations", "max_batch_len"):
            if hasattr(module, name):
                delattr(module, name)
    for parameter in model.parameters():
        parameter.grad = None
        state = cast(Any, parameter)
        state.grad_sample = None
        state._forward_counter = 0
        for name in ("_current_grad_sample", "_norm_sample"):
            if hasattr(parameter, name):
                delattr(state, name)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, tied ones once."""
    return [p for p in model.parameters() if p.requires_grad]
