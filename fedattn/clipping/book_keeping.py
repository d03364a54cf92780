"""One-backward clipping ("book-keeping", Bu et al. 2022, arXiv 2210.00038, Algorithm 1).

A layer's gradient of one record is a product of what went in and of the gradient of what came out.
Both are kept, the norms follow from them without the product, and each layer's clipped sum is one
weighted product over the whole batch: no second backward pass, no per-record gradient of a matrix
in memory. Per-record gradients that are vectors (biases, norms, the attention bias) are kept as
they are: they are smaller than the factors that they come from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedattn.clipping.factors import SharedInput, of_records
from fedattn.clipping.hooks import trainable
from fedattn.clipping.rules import Matrix, Piece, Rows, Rule, Vector, ruled_layers


class BookKeeping:
    """The book of a model's passes: what its layers' gradients consist of.

    ModelError names a trainable parameter that no rule covers.
    """

    def __init__(self, model: nn.Module, draws: int = 1) -> None:
        self.model, self.draws = model, draws
        self._layers = ruled_layers(model)
        self.parameters = trainable(model)
        self._handles = [
            layer.register_forward_hook(partial(self._called, rule=rule))
            for layer, rule in self._layers.items()
        ]
        self.reset()

    def reset(self) -> None:
        """Forget everything a pass left behind, whether it ended or raised."""
        self._ends: list[Tensor] = []  # outputs behind which nothing has a gradient to compute
        self._uses: dict[Tensor, int] = {}  # calls whose gradient is still to come
        # by identity of an input, held so that no other gets its address: layers that multiply it
        self._sharing: dict[int, tuple[Tensor, int]] = {}
        self._waiting: dict[Tensor, list[Matrix]] = {}
        self.vectors: dict[Tensor, Tensor] = {}  # (B, ...)
        self.inputs: dict[int, tuple[Tensor, SharedInput]] = {}  # likewise
        self.rows: dict[Tensor, list[Rows]] = {}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def losses_backward(self, losses: Tensor) -> None:
        """Note down the gradients of losses (R,); `draws` rows in turn are one record's.

        The record's loss is the mean of its rows'.
        """
        # With `inputs`, no weight's gradient is computed on the way, nor stored.
        torch.autograd.grad(losses.sum() / self.draws, self._ends, allow_unused=True)
        self._ends.clear()

    def _called(self, layer: nn.Module, inputs: Any, output: Tensor, *, rule: Rule) -> None:
        if not (torch.is_grad_enabled() and output.requires_grad):
            return
        if not any(isinstance(each, Tensor) and each.requires_grad for each in inputs):
            self._ends.append(output)
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            self._uses[layer.weight] = self._uses.get(layer.weight, 0) + 1
            given = inputs[0]
            self._sharing[id(given)] = given, self._sharing.get(id(given), (given, 0))[1] + 1
        hook = partial(self._flowed, layer, rule, [inputs])
        output.register_hook(hook)  # type: ignore[no-untyped-call]

    def _flowed(self, layer: nn.Module, rule: Rule, held: list[Any], grad: Tensor) -> None:
        inputs = held.pop()  # (the graph keeps the hook, and what it holds, to the end of the pass)
        for piece in rule(layer, inputs, grad.detach()):
            self._note(piece, inputs)

    def _note(self, piece: Piece, inputs: tuple[Any, ...]) -> None:
        parameter = piece.parameter
        if isinstance(piece, Vector):
            rows = piece.value
            value = rows.view(-1, self.draws, *rows.shape[1:]).sum(1) if self.draws > 1 else rows
            before = self.vectors.get(parameter)
            self.vectors[parameter] = value if before is None else before + value
        elif isinstance(piece, Rows):
            self.rows.setdefault(parameter, []).append(
                Rows(parameter, *of_records(piece, self.draws))
            )
        else:
            self._multiplied(piece, inputs[0])

    def _multiplied(self, piece: Matrix, given: Tensor) -> None:
        """A layer called several times has one gradient: its calls become one of more places."""
        parameter = piece.parameter
        calls = self._waiting.setdefault(parameter, [])
        calls.append(piece)
        if len(calls) < self._uses[parameter]:
            return
        factors = [of_records(call, self.draws) for call in self._waiting.pop(parameter)]
        if len(factors) == 1:
            x, grad = factors[0]
        else:
            x, grad = (torch.cat(each, 1) for each in zip(*factors, strict=True))
            given = x
        if id(given) not in self.inputs:
            self.inputs[id(given)] = given, SharedInput(x)
        shared = self.inputs[id(given)][1]
        shared.add(parameter, grad)
        if len(shared.grads) == self._sharing.get(id(given), (given, 0))[1]:
            shared.close()  # (its products take memory)
