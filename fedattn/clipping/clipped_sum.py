"""A sum of per-record gradients, each clipped, and the margin that its arithmetic needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

# A record is clipped to C (1 - CLIP_MARGIN), which leaves C CLIP_MARGIN for the arithmetic. With
# u = 2^-24, float32's rounding, two sums of B and B + 1 records differ from exact arithmetic by
# - norms: hooks take them in float64; book-keeping in float32 of products that do not cancel
#   (kept_sum.py), else in float64 [short by 2e-7 at most, over records made to be trusted wrongly];
# - sums: float64 over passes, at most B^2 2^-53 C, nothing (1e-8 C for B = 10^4). Within one pass
#   book-keeping's are float32, at most about 2 u sqrt(B T) B C for B records of T places;
# - leaving as float32 (one-step rounds): u |sum| <= u B C each, so at most 2 u B C, which stays
#   within the margin up to B = 8,000 records of one device that all point one way. Where the
#   device adds its own noise the sum is rounded to the noise's grid (noise.py);
# - the passes: how another record is computed must not hang on this one. Padding is by a record's
#   own length alone (train.py): with weights that a server crafted, padding by the batch's would
#   let one record move or zero all others (tests/attacks/test_crafted_weights.py). What is left is
#   how many rows a product has: [no difference seen for 1 to 40 rows, crafted weights included].
#   No proof bounds it: tests/test_sensitivity.py measures how much of the margin is used, and the
#   rest is the floating-point assumption of DESIGN section 4.
CLIP_MARGIN = 1e-3
# In bfloat16 a pass's values are rounded to 2^-9, so more is left to what rows do to rounding;
# norms and sums are float32 over the rounded factors.
CLIP_MARGIN_BFLOAT16 = 1e-2
_COLUMNS = 1 << 13  # of gradients made float64 at once: they stay in the second-level cache


class ClippedSum:
    """The sum over records of their gradients, each clipped over all `parameters` at once.

    With `draws` rows of a batch in turn per record, a record's gradient is the mean of its rows'.
    A record's gradient g counts as g min(1, clip_norm (1 - CLIP_MARGIN) / |g|), and as zero if
    any of it is not finite. Sums are kept on the parameters as `summed_grad`, where
    DPOptimizer looks for them; None until something is added.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        clip_norm: float,
        draws: int = 1,
        margin: float = CLIP_MARGIN,
    ) -> None:
        self.parameters = cast(Sequence[Any], parameters)
        self.clip_norm, self.draws = clip_norm, draws
        self.limit = clip_norm * (1 - margin)  # of a record's norm
        self.forget()

    def add(self) -> None:
        """Add the records in `grad_sample` (B, ...); all sums change or, on an exception, none."""
        samples = [p.grad_sample.detach().flatten(1) for p in self.parameters]  # (B, d_p)
        if self.draws > 1:  # rows in turn are one record's
            samples = [s.unflatten(0, (-1, self.draws)).mean(1) for s in samples]
        squares = [p.double().square().sum(1) for s in samples for p in s.split(_COLUMNS, 1)]
        norms = torch.stack(squares).sum(0).sqrt()  # (B,); no float32's square overflows
        shares = (self.limit / norms).clamp(max=1.0)
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
            else p.summed_grad.flatten().double()
            for p in self.parameters
        ]
        return torch.cat(parts).cpu()  # (one copy from the device, not one a parameter)

    def forget(self) -> None:
        """Start from an empty sum."""
        for parameter in self.parameters:
            parameter.summed_grad = None
