"""Attention written out beside torch's fused kernel, and generation with and without a cache."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fedattn.attention import MultiHeadAttention, distance_buckets
from fedattn.config import Architecture
from fedattn.decoding import Decoding
from fedattn.model import AttentionGenerator

FORMS = ("written_out", "fused")
# (B, T, d, heads) of self-attention; the last one is a step of generation: one query
SIZES = {
    "V=8192 B=16 T=64": (16, 64, 192, 4),
    "V=512 B=32 T=128": (32, 128, 192, 4),
    "quickstart": (32, 64, 192, 4),
    "evaluation": (64, 24, 192, 4),
}


def seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU time of each call, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if turn > 1:
                taken[name].append(time.process_time() - began)
    return taken


def layer_ratio(
    size: tuple[int, int, int, int], dtype: torch.dtype, *, backward: bool, repeats: int
) -> dict[str, Any]:
    """One layer of padded self-attention: written out over fused, above 1 where fused is faster."""
    batch, length, d_model, heads = size
    layer = MultiHeadAttention(d_model, heads)
    x = torch.randn(batch, length, d_model)
    places = torch.arange(length)
    buckets = distance_buckets(places, places, bidirectional=True)
    blocked = (places < torch.randint(0, length // 2, (batch, 1)))[:, None, None, :]

    def run(form: str) -> Tensor:
        with (
            patch("fedattn.attention.form_for", lambda _: form),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
            torch.set_grad_enabled(backward),
        ):
            out: Tensor = layer(x, x, buckets, blocked)
            if backward:
                torch.autograd.backward(out.float().square().mean())
            return out

    taken = seconds({form: lambda form=form: run(form) for form in FORMS}, repeats)  # type: ignore[misc]
    with torch.no_grad():
        differs = float((run("fused") - run("written_out")).abs().max())
    return {**_compared(taken, "written_out", "fused"), "largest_difference": differs}


def generation_ratio(repeats: int, tokens: int = 40) -> dict[str, Any]:
    """A reply of `tokens` tokens from scratch at each, over one with keys and values kept."""
    model = AttentionGenerator(Architecture()).eval()
    memory = model.encode(torch.randint(0, 4096, (1, 64)))
    read = torch.randint(0, 4096, (1, tokens))

    @torch.no_grad()
    def again() -> None:
        for end in range(1, tokens + 1):
            model.decode(memory, read[:, :end])

    @torch.no_grad()
    def kept() -> None:
        decoding = Decoding(model, memory, tokens)
        for place in range(tokens):
            decoding.step(read[:, place])

    return _compared(seconds({"again": again, "kept": kept}, repeats), "again", "kept")


def _compared(taken: dict[str, list[float]], over: str, under: str) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(taken[over], taken[under], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "ms": {name: round(1e3 * min(each), 3) for name, each in taken.items()},
    }


def main() -> None:
    """Print every ratio, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    made: dict[str, Any] = {"threads": given.threads, "repeats": given.repeats, "sizes": []}
    for name, size in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for backward in (False, True):
                made["sizes"].append(
                    {
                        "size": name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "pass": "forward_backward" if backward else "forward",
                        **layer_ratio(size, dtype, backward=backward, repeats=given.repeats),
                    }
                )
    made["generation"] = generation_ratio(given.repeats)
    if given.json:
        print(json.dumps(made))
        return
    print(f"CPU, {given.threads} threads, medians of {given.repeats} repeats in turns")
    print("written out / fused, above 1 where fused is faster")
    for row in made["sizes"]:
        print(
            f"{row['size']:18} {row['dtype']:9} {row['pass']:17} {row['ratio']:6.2f} "
            f"({row['spread'][0]:.2f}..{row['spread'][1]:.2f})  ms {row['ms']}"
        )
    print(f"generation from scratch / with a cache: {made['generation']}")


if __name__ == "__main__":
    main()
