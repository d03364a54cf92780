"""Norms and weighted sums of per-record gradients that exist as factors alone.

A weight's gradient of record i is G_i = sum_t g_t x_t^T. Its squared norm is the sum over pairs of
places of (x_t . x_s)(g_t . g_s) (the ghost norm; Goodfellow 2015, Li et al. 2022, arXiv
2110.05679), or that of G_i made and dropped, whichever is cheaper. Layers with the same input share
the products of its places.

Products and sums are float32. Where places cancel, the ghost norm is a small difference of large
numbers, and so is the sum: `squares` says by how much, and `exact` makes a gradient in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from fedattn.clipping.rules import Matrix, Rows

_MADE_AT_ONCE: Final = 1 << 20  # numbers of G_i in memory while their norms are taken
_LARGE: Final = 2.0**30  # |x_t|^2 or |g_t|^2; what is lost is below 2^15 1e-19, for any clip norm
_BLOCK: Final = 64  # places; the products of two different blocks are computed once, not twice


class SharedInput:
    """The weights that multiply one input x (B, T, d_in)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.grads: list[tuple[Tensor, Tensor]] = []  # (B, T, d_out) each
        self._products: list[Tensor] | None = None  # sums over weights of g_t . g_s, by block
        self._squares: tuple[Tensor, Tensor, Tensor] | None = None
        self._largest = x.new_zeros(x.shape[0])
        self._made: Tensor | None = None  # (2, B): both results of `squares`

    def add(self, parameter: Tensor, grad: Tensor) -> None:
        """One weight's output gradient; not after `close`."""
        assert self._squares is None
        self.grads.append((parameter, grad))
        places, wide, high = self.x.shape[1], self.x.shape[2], grad.shape[2]
        shared = 0 if self._products is not None else wide
        if places * (high + shared) <= wide * high:
            self._products = _block_products(grad, self._products)
        else:
            squares = _made_squares(self.x, grad)
            mine, theirs = self.x.square().sum(2), grad.square().sum(2)
            apart = (mine * theirs).sum(1)
            self._largest = torch.maximum(self._largest, torch.maximum(mine, theirs).amax(1))
            both = torch.stack([squares, apart])
            self._made = both if self._made is None else self._made + both

    def squares(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms (B,), what they would be if no two places had anything in common, extremes.

        A record is extreme if a place's input or gradient is so large that the other one, too small
        for its square to be a float32, could matter.
        """
        self.close()
        assert self._squares is not None
        return self._squares

    def close(self) -> None:
        """Every weight is in: compute `squares` and forget the products of places."""
        if self._squares is not None:
            return
        none = self.x.new_zeros(2, self.x.shape[0])
        total, scale = none if self._made is None else self._made
        largest = self._largest
        if self._products is not None:
            ours = _block_products(self.x, None)
            # (B, T): every place with itself
            mine, theirs = (
                torch.cat([block.diagonal(dim1=1, dim2=2) for block in blocks], 1)
                for blocks in (ours, self._products)
            )
            scale = scale + (mine * theirs).sum(1)
            largest = torch.maximum(largest, torch.maximum(mine, theirs).amax(1))
            for one, other in zip(ours, self._products, strict=True):
                one[:, :, one.shape[1] :] *= 2  # two different blocks meet twice
                total = total + torch.linalg.vecdot(one.flatten(1), other.flatten(1))
        self._products = None
        self._squares = total, scale, largest > _LARGE

    def exact(self, record: int) -> list[tuple[Tensor, Tensor]]:
        """One record's gradient of each weight, made in float64."""
        x = self.x[record].double()
        return [(parameter, grad[record].double().T @ x) for parameter, grad in self.grads]

    def drop(self, records: Tensor) -> None:
        """Make `records` (B,) bool count as zero."""
        gone = records[:, None, None]
        self.x = self.x.masked_fill(gone, 0)  # (not in place: others may hold these tensors)
        self.grads = [(parameter, grad.masked_fill(gone, 0)) for parameter, grad in self.grads]

    def sums(self, shares: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The sum over records of gradients times `shares` (B,), by weight; forgets the factors."""
        weighted: Tensor | None = None
        found = []
        while self.grads:
            parameter, grad = self.grads.pop()
            x = self.x
            if grad.shape[2] < x.shape[2]:
                grad = grad * shares[:, None, None]
            else:
                weighted = x = x * shares[:, None, None] if weighted is None else weighted
            found.append((parameter, grad.flatten(0, 1).T @ x.flatten(0, 1)))
        return found


class Table:
    """The rows of a (V, d) table that records used, and a linear layer that it is tied to."""

    def __init__(self, pieces: Sequence[Rows]) -> None:
        self.parameter = pieces[0].parameter
        self.ids = torch.cat([piece.ids for piece in pieces], 1)  # (B, T)
        self.grad = torch.cat([piece.grad for piece in pieces], 1)  # (B, T, d)
        size = self.parameter.shape[0]
        records = torch.arange(len(self.ids), device=self.ids.device)[:, None]
        used, places = torch.unique(records * size + self.ids, return_inverse=True)
        self._record, self._row = used // size, used % size  # (U,)
        self._rows = _add_rows(self.grad.flatten(0, 1), places.flatten(), len(used))  # (U, d)

    def apart(self) -> Tensor:
        """What `squares` would be if no two places had anything in common, (B,)."""
        return self.grad.square().sum((1, 2))

    def squares(self) -> Tensor:
        """Squared norms (B,)."""
        found = self._rows.new_zeros(len(self.ids))
        return found.index_add_(0, self._record, self._rows.square().sum(1))

    def products(self, x: Tensor, grad: Tensor) -> Tensor:
        """Inner products (B,) with the gradient of a linear layer of the same weight."""
        places = self.ids[:, None, :].expand(-1, x.shape[1], -1)
        met = torch.gather(grad, 2, places)  # what the output layer says of the ids that came in
        return (met * (x @ self.grad.transpose(1, 2))).sum((1, 2))

    def add_exact(self, record: int, made: Tensor) -> None:
        """Add one record's rows to `made` (V, d) float64."""
        mine = self._record == record
        made[self._row[mine]] += self._rows[mine].double()

    def drop(self, records: Tensor) -> None:
        """Make `records` (B,) bool count as zero."""
        self._rows = self._rows.masked_fill(records[self._record][:, None], 0)

    def add_sum(self, shares: Tensor, total: Tensor | None) -> Tensor:
        """`total` (V, d) plus the records' gradients times `shares` (B,)."""
        weighted = self._rows * shares[self._record][:, None]
        size = self.parameter.shape[0]
        if total is None:
            return _add_rows(weighted, self._row, size)
        return total.index_add_(0, self._row, weighted)


def _add_rows(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count, d) with values[i] added to row rows[i]."""
    found: Tensor = torch.ops.aten.embedding_dense_backward(values, rows, count, -1, False)
    return found


def _blocks(places: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, places)) for start in range(0, places, _BLOCK)]


def _block_products(values: Tensor, before: list[Tensor] | None) -> list[Tensor]:
    """values_t . values_s for each t of a block and s from the block's start on, added to `before`.

    (B, T, d) -> one (B, block, T - start) for each block; what is left out is symmetric.
    """
    found = []
    for number, (start, end) in enumerate(_blocks(values.shape[1])):
        left, right = values[:, start:end], values[:, start:].transpose(1, 2)
        found.append(
            torch.bmm(left, right) if before is None else before[number].baddbmm_(left, right)
        )
    return found


def _made_squares(x: Tensor, grad: Tensor) -> Tensor:
    """Squared norms (B,) of the gradients themselves, made a few at a time and dropped."""
    at_once = max(1, _MADE_AT_ONCE // (x.shape[2] * grad.shape[2]))
    return torch.cat(
        [
            torch.bmm(g.transpose(1, 2), part).square_().sum((1, 2))
            for part, g in zip(torch.split(x, at_once), torch.split(grad, at_once), strict=True)
        ]
    )


def of_records(piece: Matrix | Rows, draws: int) -> tuple[Tensor, Tensor]:
    """The factors with `draws` rows of the batch as one record: (R, T, .) -> (B, draws T, .)."""
    first = piece.x if isinstance(piece, Matrix) else piece.ids
    grad = piece.grad.float()
    if isinstance(piece, Matrix):
        first = first.float()
    if draws == 1:
        return first, grad
    records = len(first) // draws
    return (
        first.reshape(records, draws * first.shape[1], *first.shape[2:]),
        grad.reshape(records, draws * grad.shape[1], grad.shape[2]),
    )
