"""Low-rank changes of frozen matrices (LoRA; Hu et al. 2021, arXiv 2106.09685).

    W x + bias  ->  W x + bias + (alpha / R) B A x        A (R, d_in), B (d_out, R), B = 0 at first

W is frozen; A and B are trained. At first the model is the one that it was made of, whatever A is.
A is public: server, devices and auditors make the same one, bit for bit, from the start model's
hash and the layer's name. Its rows for a rank are the first rows for any larger one.

Devices average A and B apart, and a mean of products is not the product of means: what is released
is the model of the averaged factors, like any other average of weights.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from fedattn.model import AttentionGenerator
from fedattn.parameters import LORA_A, parameter_shapes
from fedattn.start import Floats

ALPHA: Final = 8  # public and the same for every rank, as in the paper's section 4.1
_LABEL: Final = "fedattn/v1/lora-a"


class LowRankLinear(nn.Linear):
    """A linear layer plus (alpha / R) B A; owns the weight and bias of the one that it replaces.

    A and B are linear layers of their own, so that whatever knows a linear layer's per-record
    gradient knows theirs.
    """

    def __init__(self, replaced: nn.Linear, first: Tensor) -> None:
        """`first` (R, d_in) is A."""
        wide, given = replaced.weight.shape
        rank = len(first)
        # (on `meta` nothing is drawn: torch's random numbers are left as they were)
        super().__init__(given, wide, bias=replaced.bias is not None, device="meta")
        self.weight, self.bias = replaced.weight, replaced.bias
        self.lora_a = nn.Linear(given, rank, bias=False, device="meta")
        self.lora_b = nn.Linear(rank, wide, bias=False, device="meta")
        self.lora_a.weight = nn.Parameter(first)
        self.lora_b.weight = nn.Parameter(torch.zeros(wide, rank))
        self.scale = ALPHA / rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        change: Tensor = self.lora_b(self.lora_a(x))
        return super().forward(x) + self.scale * change

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight (d_out, d_in) of the one linear layer that computes the same, float32."""
        change = self.lora_b.weight.double() @ self.lora_a.weight.double()
        return (self.weight.double() + self.scale * change).float()


def add_low_rank(model: AttentionGenerator, rank: int, start_sha256: str) -> None:
    """Give every linear layer of attention and feed-forward its A and B, in place.

    `start_sha256` (hex) is the hash of the model as it is. ConfigError for a rank above d_model.
    """
    for name, size in parameter_shapes(model.shape, f"lora({rank})").items():
        if name.endswith(LORA_A):
            path, _, own = name.removesuffix(LORA_A).rpartition(".")
            room, first = model.get_submodule(path), first_factor(start_sha256, name, *size)
            replaced = getattr(room, own)
            setattr(room, own, LowRankLinear(replaced, torch.from_numpy(first)))


def first_factor(start_sha256: str, name: str, rank: int, given: int) -> Floats:
    """A (rank, given) of the parameter `name`: uniform, of variance 1 / given.

    From the raw words of numpy's Philox, whose stream does not change (NEP 19); every step from
    word to number is exact or rounded once, so that it is the same number on every machine.
    """
    key = hashlib.sha256(f"{_LABEL}/{start_sha256}/{name}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(key[:16], "big")).random_raw(rank * given)
    odd = (2 * (words >> np.uint64(41)).astype(np.int64) + 1) - (1 << 23)  # in (-2^23, 2^23)
    units = odd.astype(np.float32) * np.float32(2.0**-23)
    return (units * np.float32(math.sqrt(3 / given))).reshape(rank, given)


def plain_weights(model: AttentionGenerator) -> dict[str, Tensor]:
    """The state of the model without low-rank changes that computes the same: W + (alpha/R) B A."""
    state = model.state_dict()
    for path, layer in model.named_modules():
        if isinstance(layer, LowRankLinear):
            state[f"{path}.weight"] = layer.merged()
            del state[f"{path}.lora_a.weight"], state[f"{path}.lora_b.weight"]
    return state
