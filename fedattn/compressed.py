"""A model in less space: weights that are 0 are left out, the others may be 8-bit integers.

A file of format fedattn-compressed/1 (safetensors) has, for each matrix `name` of (rows, columns):

    name.kept     bits, packed row after row: which weights are not 0
    name.values   those weights in order: int8, or floats in half precision where it holds them
                  exactly
    name.scales   (rows,) float32, with int8 alone: a weight is its integer times its row's scale

and everything else (biases, norms, the relative-position bias) as float32 under its own name.
Loaded, the weights are dense again: zeros save bytes on disk, not time. Linear layers of at least
`LARGE` weights compute in integers where the weights are int8: their input is rounded to int8 row
by row as it comes, with a scale of its own (dynamic quantisation), and products are summed exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedattn.config import Architecture
from fedattn.errors import ModelError
from fedattn.model import AttentionGenerator
from fedattn.parameters import parameter_shapes

FORMAT: Final = "fedattn-compressed/1"
LEVELS: Final = 127  # integers are -127..127
# Below, rounding the input takes longer than the products save (measured, docs/utility.md).
LARGE: Final = 1 << 19
_TIED: Final = "head.weight"


def is_matrix(name: str, dimensions: int) -> bool:
    """Whether a parameter is pruned and quantised: all matrices but relative-position biases."""
    return dimensions == 2 and not name.endswith("bias.weight")


@torch.no_grad()
def prune(model: AttentionGenerator, share: float) -> None:
    """Set the `share` of all weights of matrices that are smallest in magnitude to 0.

    One bound for all matrices (global), each weight by itself (unstructured). A tied weight
    counts once.
    """
    matrices = [p for name, p in model.named_parameters() if is_matrix(name, p.dim())]
    sizes = torch.cat([each.detach().abs().flatten() for each in matrices])
    smallest = sizes.argsort()[: round(share * len(sizes))]
    gone = torch.zeros(len(sizes), dtype=torch.bool).index_fill_(0, smallest, True)
    parts = torch.split(gone, [each.numel() for each in matrices])
    for matrix, part in zip(matrices, parts, strict=True):
        matrix[part.view_as(matrix)] = 0.0


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers int8 (rows, columns) and scales float32 (rows,); 0 stays 0.

    A weight is off by at most half of its row's scale, its largest magnitude / 127.

    >>> quantised(torch.tensor([[0.0, 1.0, -2.0]]))
    (tensor([[   0,   64, -127]], dtype=torch.int8), tensor([0.0157]))
    """
    scales = (weight.detach().abs().amax(1) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight.detach() / scales[:, None]).round().to(torch.int8), scales


def to_bytes(model: AttentionGenerator, *, is_int8: bool) -> bytes:
    """The file of a model whose weights are float32."""
    stored: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if not is_matrix(name, weight.dim()):
            stored[name] = weight.contiguous()
            continue
        if is_int8:
            values, stored[f"{name}.scales"] = quantised(weight)
        else:
            half = weight.half()
            values = half if torch.equal(half.float(), weight) else weight
        kept = (values != 0).flatten()
        stored[f"{name}.kept"] = _packed(kept)
        stored[f"{name}.values"] = values.flatten()[kept]
    architecture = json.dumps(model.shape.model_dump(), sort_keys=True)
    weights = "int8" if is_int8 else "float"
    made: bytes = save(stored, {"format": FORMAT, "architecture": architecture, "weights": weights})
    return made


def is_compressed(path: Path) -> bool:
    """Whether `path` says that it is of this format; False for whatever cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except (SafetensorError, OSError):
        return False


def load_compressed(path: Path) -> AttentionGenerator:
    """The model of a file that `to_bytes` made; ModelError says what does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise ModelError(f"{path}: not a safetensors file") from None
    try:
        shape = Architecture.model_validate_json(metadata["architecture"])
        is_int8 = {"int8": True, "float": False}[metadata["weights"]]
        weights = {
            name: _restored(stored, name, size, is_int8=is_int8)
            for name, size in parameter_shapes(shape).items()
        }
    except (KeyError, ValueError, RuntimeError):
        raise ModelError(f"{path}: tensors do not fit {FORMAT}; compress the model again") from None
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ModelError(f"{path}: weights are not finite")
    model = AttentionGenerator(shape)
    model.load_state_dict({**weights, _TIED: weights["embedding.weight"]})
    if is_int8:
        _compute_in_integers(model)
    return model


class IntegerLinear(nn.Module):
    """A linear layer that multiplies integers; weights as `quantised`, inputs row by row."""

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = quantised(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., rows), float32."""
        rows, row_scales = quantised(x.flatten(0, -2).float())
        sums = torch._int_mm(rows, self.weight.t())  # int32: exact
        out = sums.float() * (row_scales[:, None] * self.scales)
        if self.bias is not None:  # attention's keys have none
            out = out + self.bias
        return out.view(*x.shape[:-1], -1)


def _compute_in_integers(model: AttentionGenerator) -> None:
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear) and layer.weight.numel() >= LARGE:
                setattr(module, name, IntegerLinear(layer))


def _restored(
    stored: Mapping[str, Tensor], name: str, size: tuple[int, ...], *, is_int8: bool
) -> Tensor:
    """The float32 weight `name`; KeyError, ValueError or RuntimeError if it is not all there."""
    if not is_matrix(name, len(size)):
        whole = stored[name]
        if whole.shape != size or whole.dtype != torch.float32:
            raise ValueError
        return whole
    values = stored[f"{name}.values"]
    count = size[0] * size[1]
    kept = _unpacked(stored[f"{name}.kept"], count)
    dtypes = (torch.int8,) if is_int8 else (torch.float16, torch.float32)
    if values.dtype not in dtypes or values.shape != (int(kept.sum()),):
        raise ValueError
    weight = torch.zeros(count).masked_scatter_(kept, values.float()).view(size)
    if is_int8:
        scales = stored[f"{name}.scales"]
        if scales.shape != size[:1] or scales.dtype != torch.float32:
            raise ValueError
        weight = weight * scales[:, None]
    return weight


def _packed(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy()))


def _unpacked(stored: Tensor, count: int) -> Tensor:
    if stored.dtype != torch.uint8 or len(stored) != (count + 7) // 8:
        raise ValueError
    return torch.from_numpy(np.unpackbits(stored.numpy(), count=count)).bool()
