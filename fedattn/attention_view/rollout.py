"""Attention rollout for an encoder-decoder: what a reply token saw through all layers.

Abnar & Zuidema 2020 (arXiv 2005.00928) follow attention through a stack of layers: each passes on
half of what stood in its place (the residual stream) and half of what it attended to. They define
it for one stack. Here, with heads averaged, A_l (S, S) the encoder's attention in layer l, B_l
(T, T) the decoder's own, X_l (T, S) the cross-attention, and E what a memory slot holds of each
context token:

    E   = (A_L/2 + I/2) ... (A_2/2 + I/2) (A_1/2 + I/2)
    C_0 = 0
    C_l = 1/2 (B_l/2 + I/2) C_(l-1) + 1/2 X_l E            l = 1..M

C_l (T, S) is the part of the decoder's stream that comes from the context; the rest of each row,
2^-l, comes from the reply so far. The rollout is C_M / (1 - 2^-M): each row sums to 1. The formula
knows weights alone, neither values nor what feed-forward layers do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout(
    encoder: Sequence[Tensor], decoder: Sequence[Tensor], cross: Sequence[Tensor]
) -> Tensor:
    """C_M / (1 - 2^-M): (T, S), from attention of one example, (H, ., .) each, first layer first.

    `encoder` (H, S, S) may have another number of layers than `decoder` (H, T, T) and `cross`
    (H, T, S), which have M >= 1 each.
    """
    slots = cross[0].shape[-1]
    memory = torch.eye(slots, dtype=torch.float64)
    for weights in encoder:
        memory = _with_residual(weights) @ memory
    seen = torch.zeros(cross[0].shape[-2:], dtype=torch.float64)
    for own, across in zip(decoder, cross, strict=True):
        seen = 0.5 * (_with_residual(own) @ seen) + 0.5 * (_heads_mean(across) @ memory)
    return seen / (1 - 0.5 ** len(cross))


def _heads_mean(weights: Tensor) -> Tensor:
    return weights.detach().to("cpu", torch.float64).mean(0)


def _with_residual(weights: Tensor) -> Tensor:
    mean = _heads_mean(weights)
    return 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], dtype=mean.dtype)
