"""Opacus's ghost clipping: norms from one backward pass, the clipped sum from a second.

It computes the norm of each row of a batch, so a record is one row; and it knows no tied weights.
"""

from __future__ import annotations

import warnings

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from fedattn.clipping.clipped_sum import CLIP_MARGIN, ClippedSum
from fedattn.clipping.hooks import forget_pass, trainable, with_gradient
from fedattn.errors import ModelError
from fedattn.model import AttentionGenerator


class GhostGradients:
    """Leaves in `grad` the sum of the last pass's gradients, each clipped."""

    def __init__(self, model: AttentionGenerator, clip_norm: float) -> None:
        if model.embedding.weight.requires_grad:
            raise ModelError(
                "clipping: ghost has no rule for embedding.weight, which is tied to the output "
                "layer; freeze it (trainable: bias_norm), or set clipping: book_keeping"
            )
        self.model = model
        self._limit = clip_norm * (1 - CLIP_MARGIN)
        self._module = GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=clip_norm, use_ghost_clipping=True
        )
        self._needs_grad = model.embedding.register_forward_hook(with_gradient)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return trainable(self.model)

    def losses_backward(self, losses: Tensor) -> None:
        """Both passes for losses (B,).

        FloatingPointError if a norm is not finite: whose it is, is found one record at a time.
        """
        with warnings.catch_warnings():
            # True of the embedding, whose input is token ids, and harmless there.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            torch.autograd.backward(losses.sum(), retain_graph=True)
        norms = self._module.get_norm_sample().double()
        for parameter in self.parameters:
            parameter.grad = None
        if not norms.isfinite().all():
            raise FloatingPointError("a gradient is not finite")
        shares = (self._limit / norms).clamp(max=1.0).to(losses.dtype)
        self._module.disable_hooks()
        try:
            torch.autograd.backward((shares * losses).sum())
        finally:
            self._module.enable_hooks()

    def reset(self) -> None:
        """Forget everything a pass left behind, whether it ended or raised."""
        forget_pass(self.model)

    def close(self) -> None:
        """Remove the hooks."""
        self._needs_grad.remove()
        self._module.to_standard_module()


class GhostSum(ClippedSum):
    """Sums what `GhostGradients` left; passes are added in float64."""

    def add(self) -> None:
        """Add the last pass; all sums change or, on an exception, none."""
        for parameter in self.parameters:
            made, before = parameter.grad, parameter.summed_grad
            if made is not None:
                parameter.summed_grad = made if before is None else before.double().add_(made)
                parameter.grad = None
