"""textgenrnn 2.0.0's character LSTM in torch: public weights that write modern English.

Two LSTM layers; the next character is read from a weighted average, over all positions of the
window, of embedding and both layers' outputs (`skip embedding` and `attention weighting` in the
package's words). The weights' HDF5 file keeps the layout of Keras's CuDNNLSTM layer: each gate's
input kernel is stored row by row as (units, inputs), the recurrent kernel as (units, units)
transposed, gates in the order input, forget, cell, output, and one bias for either kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedattn.errors import DataError

Arrays = Mapping[str, npt.NDArray[np.float32]]

NAMES = (
    "embedding/embedding/embeddings:0",
    "rnn_1/rnn_1/kernel:0",
    "rnn_1/rnn_1/recurrent_kernel:0",
    "rnn_1/rnn_1/bias:0",
    "rnn_2/rnn_2/kernel:0",
    "rnn_2/rnn_2/recurrent_kernel:0",
    "rnn_2/rnn_2/bias:0",
    "attention/attention/attention_W:0",
    "output/output/kernel:0",
    "output/output/bias:0",
)


@dataclass(frozen=True)
class State:
    """Where B streams stand: both layers' cells, and the running weighted average."""

    hidden: Tensor  # (B, 2u): the outputs of layers 1 and 2
    cells: Tensor  # (2, B, u)
    weighted: Tensor  # (B, e + 2u): sum of weight times features
    weights: Tensor  # (B, 1): sum of weights


class CharacterLSTM:
    """The network as a function of a state; ids (B,) int64, 0 is the padding."""

    def __init__(self, arrays: Arrays) -> None:
        missing = [name for name in NAMES if name not in arrays]
        if missing:
            raise DataError(f"textgenrnn weights lack {missing[0]}; install textgenrnn==2.0.0")
        a = {name: np.asarray(arrays[name], np.float32) for name in NAMES}
        embedding = a[NAMES[0]]
        units = a[NAMES[2]].shape[0]
        input_1, recurrent_1 = _kernels(a[NAMES[1]], a[NAMES[2]])
        input_2, recurrent_2 = _kernels(a[NAMES[4]], a[NAMES[5]])
        bias_1, bias_2 = (_one_bias(a[NAMES[i]]) for i in (3, 6))
        self.units = units
        self.embedding = torch.from_numpy(embedding)  # (V, e)
        self.projected = torch.from_numpy(embedding @ input_1 + bias_1)  # (V, 4u)
        self.kernel_1 = torch.from_numpy(np.ascontiguousarray(recurrent_1))  # (u, 4u)
        self.kernel_2 = torch.from_numpy(np.concatenate([input_2, recurrent_2]))  # (2u, 4u)
        self.bias_2 = torch.from_numpy(bias_2)
        self.attention = torch.from_numpy(np.ascontiguousarray(a[NAMES[7]]))  # (e + 2u, 1)
        self.output = torch.from_numpy(np.ascontiguousarray(a[NAMES[8]]))  # (e + 2u, V)
        self.output_bias = torch.from_numpy(np.ascontiguousarray(a[NAMES[9]]))

    def start(self, streams: int) -> State:
        """The state before any character."""
        features = self.attention.shape[0]
        return State(
            torch.zeros(streams, 2 * self.units),
            torch.zeros(2, streams, self.units),
            torch.zeros(streams, features),
            torch.zeros(streams, 1),
        )

    def step(self, state: State, ids: Tensor) -> State:
        """The state after one more character of every stream."""
        u = self.units
        gates_1 = torch.addmm(self.projected[ids], state.hidden[:, :u], self.kernel_1)
        cell_1, hidden_1 = _cell(gates_1, state.cells[0], u)
        below = torch.cat([hidden_1, state.hidden[:, u:]], 1)
        gates_2 = torch.addmm(self.bias_2, below, self.kernel_2)
        cell_2, hidden_2 = _cell(gates_2, state.cells[1], u)
        features = torch.cat([self.embedding[ids], hidden_1, hidden_2], 1)
        weight = torch.exp(features @ self.attention)
        return State(
            features[:, -2 * u :],
            torch.stack([cell_1, cell_2]),
            torch.addcmul(state.weighted, features, weight),
            state.weights + weight,
        )

    def logits(self, state: State) -> Tensor:
        """Scores (B, V) of the next character."""
        average = state.weighted / state.weights
        return torch.addmm(self.output_bias, average, self.output)


def _cell(gates: Tensor, cell: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The next cell and output of one layer; gates (B, 4u): input, forget, cell, output."""
    opened = torch.sigmoid(gates)
    new = torch.tanh(gates[:, 2 * units : 3 * units])
    cell = opened[:, units : 2 * units] * cell + opened[:, :units] * new
    return cell, opened[:, 3 * units :] * torch.tanh(cell)


def _kernels(
    kernel: npt.NDArray[np.float32], recurrent: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Input (in, 4u) and recurrent kernel (u, 4u) to be multiplied from the right."""
    inputs, units = kernel.shape[0], recurrent.shape[0]
    gates = [kernel[:, g * units : (g + 1) * units] for g in range(4)]
    straight = [np.ascontiguousarray(gate).reshape(units, inputs).T for gate in gates]
    turned = [recurrent[:, g * units : (g + 1) * units].T for g in range(4)]
    return np.concatenate(straight, 1), np.concatenate(turned, 1)


def _one_bias(bias: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """CuDNN keeps a bias for either kernel; only their sum matters."""
    half = len(bias) // 2
    return bias[:half] + bias[half:]
