"""Which gradient each layer's parameters have, from what went in and the gradient of what came out.

A rule knows one kind of layer. It gives vectors as per-record gradients (B, ...), which are small,
and matrices as factors, from which norm and sum follow (`factors`). Layers have rules by their
exact type: a subclass may compute something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedattn.errors import ModelError
from fedattn.lora import LowRankLinear
from fedattn.model import RelativePositionBias
from fedattn.parameters import NUM_BUCKETS


class Vector(NamedTuple):
    """Per-record gradient of a parameter: `value` (R, ...), one row a row of the batch."""

    parameter: Tensor
    value: Tensor


class Matrix(NamedTuple):
    """Gradient of a (d_out, d_in) weight: the sum over places of grad (R, T, d_out) times x."""

    parameter: Tensor
    x: Tensor  # (R, T, d_in)
    grad: Tensor


class Rows(NamedTuple):
    """Gradient of a (V, d) table: `grad` (R, T, d) added to the rows `ids` (R, T)."""

    parameter: Tensor
    ids: Tensor
    grad: Tensor


Piece: TypeAlias = Vector | Matrix | Rows
# (layer, its inputs, gradient of its output) -> pieces of its trainable parameters
Rule: TypeAlias = Callable[[Any, tuple[Any, ...], Tensor], list[Piece]]


def _places(values: Tensor) -> Tensor:
    """(R, ..., d) -> (R, T, d); without places, T is 1."""
    return values[:, None] if values.dim() == 2 else values.flatten(1, -2)


def _linear(layer: nn.Linear, inputs: tuple[Any, ...], grad: Tensor) -> list[Piece]:
    pieces: list[Piece] = []
    grad = _places(grad)
    if layer.weight.requires_grad:
        # under autocast the product took x in the type of its output
        pieces.append(Matrix(layer.weight, _places(inputs[0].detach()).to(grad.dtype), grad))
    if layer.bias is not None and layer.bias.requires_grad:
        pieces.append(Vector(layer.bias, grad.sum(1, dtype=torch.float32)))
    return pieces


def _normalised(
    layer: nn.LayerNorm | nn.RMSNorm, normal: Callable[[], Tensor], grad: Tensor
) -> list[Piece]:
    pieces: list[Piece] = []
    grad = grad.float()
    if layer.weight is not None and layer.weight.requires_grad:
        pieces.append(Vector(layer.weight, _places(grad * normal()).sum(1)))
    bias = getattr(layer, "bias", None)
    if bias is not None and bias.requires_grad:
        pieces.append(Vector(bias, _places(grad).sum(1)))
    return pieces


def _layer_norm(layer: nn.LayerNorm, inputs: tuple[Any, ...], grad: Tensor) -> list[Piece]:
    x = inputs[0].detach().float()
    return _normalised(layer, lambda: F.layer_norm(x, layer.normalized_shape, eps=layer.eps), grad)


def _rms_norm(layer: nn.RMSNorm, inputs: tuple[Any, ...], grad: Tensor) -> list[Piece]:
    x = inputs[0].detach().float()
    shape = list(layer.normalized_shape)
    return _normalised(layer, lambda: F.rms_norm(x, shape, eps=layer.eps), grad)


def _embedding(layer: nn.Embedding, inputs: tuple[Any, ...], grad: Tensor) -> list[Piece]:
    ids, grad = inputs[0].reshape(len(grad), -1), _places(grad.float())
    if layer.padding_idx is not None:
        grad = grad.masked_fill((ids == layer.padding_idx)[..., None], 0)
    return [Rows(layer.weight, ids, grad)]


def _position_bias(
    layer: RelativePositionBias, inputs: tuple[Any, ...], grad: Tensor
) -> list[Piece]:
    """Sums the scores' gradients (R, H, T, S) over places of one bucket: (R, NUM_BUCKETS, H)."""
    # as a product: adding place by place would take as long as the rest of the layer
    buckets = inputs[0].reshape(-1, 1)
    chosen = grad.new_zeros(len(buckets), NUM_BUCKETS, dtype=torch.float32).scatter_(1, buckets, 1)
    sums = grad.float().flatten(2) @ chosen  # (R, H, NUM_BUCKETS)
    return [Vector(layer.weight, sums.transpose(1, 2))]


RULES: Final[Mapping[type[nn.Module], Rule]] = {
    nn.Linear: _linear,
    LowRankLinear: _linear,  # (adds to W x + b what does not depend on W and b)
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.Embedding: _embedding,
    RelativePositionBias: _position_bias,
}


def ruled_layers(model: nn.Module) -> dict[nn.Module, Rule]:
    """The layers that own a trainable parameter, each with its rule.

    ModelError names every trainable parameter that no rule covers: one of a layer of another
    kind, or one that layers share other than as an embedding tied to one linear layer.
    """
    found: dict[nn.Module, Rule] = {}
    owners: dict[nn.Parameter, list[type[nn.Module]]] = {}
    refused = []
    for name, layer in model.named_modules():
        for own, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rule = RULES.get(type(layer))
            path = f"{name}.{own}".lstrip(".")
            owners.setdefault(parameter, []).append(type(layer))
            kinds = owners[parameter]
            if rule is None:
                refused.append(f"{path} ({type(layer).__name__})")
            elif isinstance(layer, nn.Embedding) and (layer.max_norm or layer.scale_grad_by_freq):
                refused.append(f"{path} (Embedding with max_norm or scale_grad_by_freq)")
            elif len(kinds) > 1 and sorted(k.__name__ for k in kinds) != ["Embedding", "Linear"]:
                refused.append(f"{path} (shared by {', '.join(k.__name__ for k in kinds)})")
            else:
                found[layer] = rule
    if refused:
        raise ModelError(
            f"clipping: no rule for {', '.join(refused)}; freeze it, or set clipping: hooks"
        )
    return found
