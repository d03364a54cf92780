"""Where a device trains: the CPU, or which of the CUDA devices that this process sees.

    cpu      the CPU
    cuda:N   CUDA device N, or a refusal that names what is there
    cuda     the working CUDA device with the most free memory, or such a refusal
    auto     the same, or the CPU if none works

A CUDA device works if a small product on it comes out right: that it is listed says neither that
the driver fits nor that this torch was built for it. Chosen once a process, so that a device does
not change places when memory does. Ask before private data is read and before its spend is
written: a refusal after either would cost privacy for nothing.

Where CUDA devices share the CPU's memory (Jetson), "free" is what the operating system calls
free, not what it could free by dropping caches; with one device the number decides nothing.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from fedattn.errors import RefusalError

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
_SIDE = 16  # of the product that tries a device


class CudaDevices(Protocol):
    """What this process sees of CUDA; devices are numbered 0..count()-1."""

    def count(self) -> int:
        """How many devices there are; 0 also where torch has no CUDA."""

    def name(self, index: int) -> str:
        """The model of one of them."""

    def free_bytes(self, index: int) -> int:
        """Memory of one that nothing uses; 0 if it does not say."""

    def works(self, index: int) -> bool:
        """Whether one of them computes; never raises."""


def choose(wanted: str, cuda: CudaDevices) -> str:
    """`cpu` or `cuda:N`, as the module's table says; RefusalError("device") names the remedy."""
    if wanted == "cpu":
        return wanted
    count = cuda.count()
    if wanted.startswith("cuda:"):
        index = int(wanted.removeprefix("cuda:"))
        if index >= count:
            raise _refusal(wanted, "is not there", cuda)
        if not cuda.works(index):
            raise _refusal(wanted, "is there but does not compute", cuda)
        return f"cuda:{index}"
    order = list(range(count))
    if count > 1:  # (asking for free memory takes some of it)
        order.sort(key=cuda.free_bytes, reverse=True)
    for index in order:
        if cuda.works(index):
            return f"cuda:{index}"
    if wanted == "cuda":
        raise _refusal(wanted, "found no CUDA device that computes", cuda)
    if count:
        _LOG.warning("no CUDA device computes, training on the CPU: %s", _listed(cuda))
    return "cpu"


def _refusal(wanted: str, problem: str, cuda: CudaDevices) -> RefusalError:
    return RefusalError(
        "device",
        f"`device: {wanted}` {problem}; this process sees {_listed(cuda)}. Set `device: auto` or "
        "one of these, or mend driver, CUDA_VISIBLE_DEVICES or the torch build",
    )


def _listed(cuda: CudaDevices) -> str:
    places = [f"cuda:{index} ({cuda.name(index)})" for index in range(cuda.count())]
    return ", ".join(["cpu", *places]) if places else "cpu alone"


class TorchCuda:
    """CUDA as torch sees it; every question is guarded."""

    def count(self) -> int:
        """0 where torch was built without CUDA or no driver answers."""
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def name(self, index: int) -> str:
        """As the driver calls it."""
        import torch

        try:
            return torch.cuda.get_device_name(index)
        except Exception:
            return "unknown"

    def free_bytes(self, index: int) -> int:
        """As cudaMemGetInfo says; on a Jetson without swap and without droppable caches."""
        import torch

        try:
            return int(torch.cuda.mem_get_info(index)[0])
        except Exception:
            return 0

    def works(self, index: int) -> bool:
        """A product of ones, computed there and read back."""
        import torch

        try:
            ones = torch.ones(_SIDE, _SIDE, device=f"cuda:{index}")
            return bool(((ones @ ones).cpu() == _SIDE).all())
        except Exception:
            return False


@lru_cache(maxsize=8)
def usable_device(wanted: str) -> torch.device:
    """Where this process trains when its config says `device: wanted`; decided once.

    RefusalError("device") if the CUDA device that `wanted` names cannot be used.
    """
    import torch

    return torch.device(choose(wanted, TorchCuda()))
