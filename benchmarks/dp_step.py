"""One private training step beside one plain step: `python -m benchmarks.dp_step [--json]`.

On the model that fedattn trains, in turns: forward, backward, clipping, noise, optimizer step.

    plain   autograd and SGD, no privacy
    ours    book-keeping, CSPRNG noise, through Opacus's DPOptimizer (fedattn.clipping)
    hooks   Opacus's GradSampleModule and DPOptimizer as they come, with torch's noise
    ghost   Opacus's ghost clipping and DPOptimizerFastGradientClipping as they come

Opacus's ghost clipping refuses weights that are used twice, so it runs on a twin in which encoder,
decoder and output layer have a table each, beside a plain step of that twin. Memory is that of a
process of its own for each:
the highest resident size above what it was before the model was made.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from torch import nn

from benchmarks.secagg.spread import Spread
from fedattn.batches import Batch
from fedattn.clipping import PrivateOptimizer, clipped_gradients
from fedattn.config import Architecture
from fedattn.model import AttentionGenerator, trainable_names
from fedattn.randomness import Randomness
from fedattn.train import record_losses

CLIP_NORM, RATE = 1.0, 0.01
BAR, AIM, MEMORY_BAR = 1.25, 1.15, 1.3
Step = Callable[[], None]


@dataclass(frozen=True)
class Size:
    """What a step computes: `batch` examples of `context` and `reply` tokens, none padded."""

    name: str
    vocabulary: int
    batch: int
    context: int
    reply: int
    d_model: int = 256
    trainable: str = "all"

    def model(self, *, is_shared: bool = True) -> AttentionGenerator:
        """The generator with 2 + 2 layers and 4 heads, its weights drawn anew."""
        torch.manual_seed(0)
        shape = Architecture(
            vocab_size=self.vocabulary,
            d_model=self.d_model,
            context_tokens=self.context,
            reply_tokens=self.reply,
        )
        model = AttentionGenerator(shape).train()
        names = trainable_names(model, self.trainable)
        if not is_shared:
            model.head.weight = nn.Parameter(model.head.weight.detach().clone())
            model.embedding = Tables(model.embedding)  # type: ignore[assignment]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trainable == "all" or name in names)
        return model

    def data(self) -> Batch:
        """A batch of random tokens."""
        stream = torch.Generator().manual_seed(1)

        def ids(length: int) -> torch.Tensor:
            return torch.randint(0, self.vocabulary, (self.batch, length), generator=stream)

        return Batch(ids(self.context), ids(self.reply), ids(self.reply))


class Tables(nn.Module):
    """An embedding for the encoder and one for the decoder, which call it in turns."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.context, self.reply = copy.deepcopy(table), copy.deepcopy(table)
        self._calls = 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, d)."""
        self._calls += 1
        table = self.context if self._calls % 2 else self.reply
        return _with_gradient(self, (), table(ids))


SIZES = (
    Size("V=8192 B=16 T=64", 8192, 16, 64, 64),
    Size("V=512 B=32 T=128", 512, 32, 128, 128),
    Size("quickstart", 4096, 32, 64, 48, d_model=192, trainable="bias_norm"),
)


def plain(size: Size, *, is_shared: bool = True) -> Step:
    """Autograd and SGD."""
    model, data = size.model(is_shared=is_shared), size.data()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (record_losses(model, data).sum() / size.batch).backward()
        optimizer.step()

    return step


def ours(size: Size) -> Step:
    """As `fedattn.train` steps."""
    model, data = size.model(), size.data()
    attached = clipped_gradients(model, "book_keeping", CLIP_NORM)
    gradients, total = attached.__enter__()
    private = PrivateOptimizer(
        torch.optim.SGD(gradients.parameters, lr=RATE),
        total,
        noise_multiplier=1.0,
        expected_batch_size=size.batch,
        randomness=Randomness.from_os(),
    )

    def step() -> None:
        gradients.losses_backward(record_losses(model, data))
        total.accumulate()
        private.finish_step()

    step.attached = attached  # type: ignore[attr-defined] (collected, it would detach)
    return step


def hooks(size: Size) -> Step:
    """Opacus, every per-record gradient in memory."""
    model, data = size.model(), size.data()
    GradSampleModule(model, loss_reduction="sum")
    model.embedding.register_forward_hook(_with_gradient)
    optimizer = DPOptimizer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE),
        noise_multiplier=1.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=size.batch,
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        record_losses(model, data).sum().backward()
        optimizer.step()

    return step


def ghost(size: Size) -> Step:
    """Opacus, two backward passes; on the twin that is not tied."""
    model, data = size.model(is_shared=False), size.data()
    module = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=CLIP_NORM
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE),
        noise_multiplier=1.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=size.batch,
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = record_losses(model, data)
        losses.sum().backward(retain_graph=True)
        optimizer.zero_grad(set_to_none=True)
        shares = module.get_clipping_coef()
        module.disable_hooks()
        (shares * losses).sum().backward()
        module.enable_hooks()
        optimizer.step()

    return step


def _with_gradient(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output if output.requires_grad else output.requires_grad_()


KINDS: dict[str, Callable[[Size], Step]] = {
    "plain": plain,
    "ours": ours,
    "hooks": hooks,
    "plain_apart": lambda size: plain(size, is_shared=False),
    "ghost": ghost,
}


def measure(sizes: tuple[Size, ...] = SIZES, *, repeats: int = 15) -> dict[str, Any]:
    """Every size: times in turns in this process, memory in processes of their own."""
    found = [_measure(size, repeats) for size in sizes]
    return {
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "bar": BAR,
        "aim": AIM,
        "memory_bar": MEMORY_BAR,
        "sizes": found,
    }


def _measure(size: Size, repeats: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps = {kind: make(size) for kind, make in KINDS.items()}
    for _ in range(repeats + 2):
        for kind, step in steps.items():
            began = time.perf_counter()
            step()
            times[kind].append(time.perf_counter() - began)
    times = {kind: each[2:] for kind, each in times.items()}  # the first fill caches
    memory = {kind: peak_memory(size.name, kind) for kind in KINDS}

    def ratio(kind: str, base: str) -> dict[str, float]:
        return Spread.of_ratios(times[kind], times[base]).as_dict()

    return {
        "name": size.name,
        "parameters": sum(p.numel() for p in size.model().parameters()),
        "trainable": size.trainable,
        "ms": {kind: Spread.of(1e3 * t for t in each).as_dict() for kind, each in times.items()},
        "ratio_ours": ratio("ours", "plain"),
        "ratio_opacus_hooks": ratio("hooks", "plain"),
        "ratio_opacus_ghost": ratio("ghost", "plain_apart"),
        "memory_bytes": memory,
        "memory_ratio_ours": memory["ours"] / memory["plain"],
        "memory_ratio_opacus_hooks": memory["hooks"] / memory["plain"],
        "memory_ratio_opacus_ghost": memory["ghost"] / memory["plain_apart"],
    }


def peak_memory(size: str, kind: str) -> int:
    """Bytes that `kind` takes at most above a process without a model."""
    command = [sys.executable, "-m", "benchmarks.dp_step", "--memory-of", kind, "--size", size]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_memory(size: Size, kind: str) -> None:
    torch.ones(64, 64) @ torch.ones(64, 64)  # (what the libraries take on first use)
    torch.nn.functional.gelu(torch.ones(8))
    before = _resident()
    step = KINDS[kind](size)
    for _ in range(4):
        step()
    print(_resident(peak=True) - before)


def _resident(*, peak: bool = False) -> int:
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dp_step")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--size", action="append", help="of " + ", ".join(s.name for s in SIZES))
    parser.add_argument("--memory-of", choices=tuple(KINDS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    sizes = tuple(s for s in SIZES if given.size is None or s.name in given.size)
    if given.memory_of:
        _print_memory(sizes[0], given.memory_of)
        return
    found = measure(sizes, repeats=given.repeats)
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['threads']} threads, {found['repeats']} repeats, median [range]; time, memory")
    for size in cast(list[dict[str, Any]], found["sizes"]):
        print(f"{size['name']}: {size['parameters']:,} parameters, trainable {size['trainable']}")
        for kind in ("ours", "opacus_hooks", "opacus_ghost"):
            r = size[f"ratio_{kind}"]
            memory = size[f"memory_ratio_{kind}"]
            print(f"  {kind:<13} {r['median']:.2f} [{r['min']:.2f}, {r['max']:.2f}]  {memory:.2f}")


if __name__ == "__main__":
    main()
