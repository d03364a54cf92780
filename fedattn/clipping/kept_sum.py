"""The clipped sum of what a book holds (book_keeping.py)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fedattn.clipping.book_keeping import BookKeeping
from fedattn.clipping.clipped_sum import CLIP_MARGIN, ClippedSum
from fedattn.clipping.factors import Table

# A record whose squared norm is below this share of what it were if no two of its places had
# anything in common has places that cancel [real conversations: 0.96 and above]. Then both its norm
# and its part of a float32 sum are rounding errors of larger numbers, and an adversary could make
# the part exceed the norm. Its gradient is made in float64, clipped by itself and added.
_CANCELLED: Final = 0.5


class KeptSum(ClippedSum):
    """As `ClippedSum`, of the last pass that a book has noted down.

    One pass is summed in float32, passes are added in float64.
    """

    def __init__(self, book: BookKeeping, clip_norm: float, margin: float = CLIP_MARGIN) -> None:
        self._book = book
        super().__init__(book.parameters, clip_norm, book.draws, margin)

    def add(self) -> None:
        """Add the records of the last pass; all sums change or, on an exception, none."""
        totals = _Pass(self._book).clipped(self.limit)
        for parameter in (
            p for p in self.parameters if p in totals
        ):  # (may run out of memory, and then changes no value)
            if parameter.summed_grad is not None:
                parameter.summed_grad = parameter.summed_grad.double()
        for parameter in (p for p in self.parameters if p in totals):
            before, total = parameter.summed_grad, totals[parameter]
            parameter.summed_grad = total if before is None else before.add_(total)

    def accumulate(self) -> None:
        """As `add`."""
        self.add()


class _Pass:
    """What one pass left behind, taken out of the book."""

    def __init__(self, book: BookKeeping) -> None:
        self.vectors = book.vectors
        self.inputs = [shared for _, shared in book.inputs.values()]
        self.tables = {parameter: Table(rows) for parameter, rows in book.rows.items()}
        self.tied = {p: (s.x, g) for s in self.inputs for p, g in s.grads if p in self.tables}
        book.reset()

    def clipped(self, limit: float) -> dict[Tensor, Tensor]:
        """The sum of gradients, each cut to norm `limit`, by parameter; forgets the pass."""
        if not (self.vectors or self.inputs or self.tables):
            return {}
        squares, is_doubtful = self._squares()
        shares = (limit / squares.sqrt()).clamp(max=1.0).float()
        exact: dict[Tensor, Tensor] = {}
        if is_doubtful.any():
            for record in is_doubtful.nonzero().flatten().tolist():
                self._add_exact(record, limit, exact)
            self._drop(is_doubtful)
            shares[is_doubtful] = 0
        self.tied.clear()
        totals = {p: (shares @ v.flatten(1)).view(p.shape) for p, v in self.vectors.items()}
        while self.inputs:
            totals.update(self.inputs.pop().sums(shares))
        for parameter, table in self.tables.items():
            totals[parameter] = table.add_sum(shares, totals.get(parameter))
        return {p: total + exact[p] if p in exact else total for p, total in totals.items()}

    def _squares(self) -> tuple[Tensor, Tensor]:
        """Every record's squared norm over all parameters, and whether to trust it, (B,) each."""
        parts = [v.flatten(1).square().sum(1) for v in self.vectors.values()]
        is_extreme = torch.zeros((), dtype=torch.bool)
        apart = [*parts]  # if no two places had anything in common
        for shared in self.inputs:
            part, scale, extreme = shared.squares()
            parts.append(part)
            apart.append(scale)
            is_extreme = is_extreme | extreme
        for parameter, table in self.tables.items():
            part = table.squares()
            apart.append(table.apart())
            if parameter in self.tied:
                part = part + 2 * table.products(*self.tied[parameter])
            parts.append(part)
        squares = torch.stack(parts).sum(0)
        is_trusted = squares.isfinite() & (squares >= _CANCELLED * torch.stack(apart).sum(0))
        return squares, ~is_trusted | is_extreme

    def _add_exact(self, record: int, limit: float, totals: dict[Tensor, Tensor]) -> None:
        """Add one record's gradient, made in float64 and clipped; nothing if it is not finite."""
        made = {p: v[record].double() for p, v in self.vectors.items()}
        for shared in self.inputs:
            made.update(shared.exact(record))
        for parameter, table in self.tables.items():
            if parameter not in made:
                made[parameter] = torch.zeros_like(parameter, dtype=torch.float64)
            table.add_exact(record, made[parameter])
        norm = torch.stack([each.square().sum() for each in made.values()]).sum().sqrt()
        if not norm.isfinite():
            return
        share = (limit / norm).clamp(max=1.0)
        for parameter, each in made.items():
            totals[parameter] = totals.get(parameter, 0) + share * each

    def _drop(self, records: Tensor) -> None:
        """Make `records` (B,) bool count as zero (a share of zero would leave NaN as it is)."""
        for vector in self.vectors.values():
            vector[records] = 0
        for shared in self.inputs:
            shared.drop(records)
        for table in self.tables.values():
            table.drop(records)
