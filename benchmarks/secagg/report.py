"""The measurements of one run: taken in turns, gathered into one JSON object, shown as tables."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.secagg import flower, masks, ours, paper
from benchmarks.secagg.flower import FlowerCost
from benchmarks.secagg.ours import Cost
from benchmarks.secagg.sizes import Sizes
from benchmarks.secagg.spread import Spread

EXAMPLE = (3, 2)  # num-shares and threshold of flwr's own example, flower-secure-aggregation
_BITS = (8, 12, 16, 17, 24, 32)


def measure(
    sizes: Sizes, *, repeats: int, sampled: int, large: Sizes | None, huge: Sizes | None
) -> dict[str, Any]:
    """Everything, JSON-ready; see benchmarks/README.md for the keys."""
    n, around = sizes.clients, round(sizes.masks) + 1
    theirs_at = {"num_shares": around, "threshold": sizes.share_threshold or sizes.threshold}
    ours_: list[Cost] = []
    theirs: list[FlowerCost] = []
    for turn in range(repeats):
        steps = [
            lambda: ours_.append(ours.run(sizes)),
            lambda: theirs.append(
                flower.run(n, sizes.dim, sizes.dropped, sampled=sampled, **theirs_at)
            ),
        ]
        for step in steps if turn % 2 == 0 else steps[::-1]:
            step()
    sparse = [
        flower.run(
            n, sizes.dim, sizes.dropped, num_shares=shares, threshold=threshold, sampled=sampled
        )
        for shares, threshold in _neighbourhoods(n)
        if shares < around
    ]
    mask = masks.compare(sizes, max(repeats, 5))
    ratio = Spread.of_ratios([_total(c) for c in ours_], [_total(c) for c in theirs])
    result: dict[str, Any] = {
        "sizes": asdict(sizes) | {"masks_per_client": sizes.masks},
        "machine": _machine(ours_[-1].memory.pop("threads")),
        "repeats": repeats,
        "cpu_ratio": ratio.median,
        "cpu_ratio_spread": ratio.as_dict(),
        "mask_ratio": mask["ratio"].median,
        "mask_ratio_spread": mask["ratio"].as_dict(),
        "mask_ratio_with_keys": mask["ratio_with_keys"].as_dict(),
        "mask_ms_per_million": {
            "ours": mask["ours_ms_per_million"],
            "bare": mask["bare_ms_per_million"],
        },
        "upload_bytes_per_coordinate": upload_bytes(sizes),
        "server_peak_vectors": max(c.server_peak_vectors for c in ours_),
        "is_exact": all(c.is_exact for c in ours_),
        "ours": _ours(ours_),
        "flower": _flower(theirs),
        "flower_sparse": [_flower([cost]) | {"cpu_ratio": _ratio(ours_, cost)} for cost in sparse],
    }
    checks = [ours_[-1]]
    if large is not None:
        cost = ours.run(large, 2 * sampled)
        checks.append(cost)
        result["large"] = _ours([cost]) | {"server_peak_vectors": cost.server_peak_vectors}
        result["large"]["is_exact_at_small_dim"] = ours.run(
            large.at(100), 2 * sampled, all_mask=True
        ).is_exact
    if huge is not None:
        law = paper.fit(n, sizes.dim)
        result["paper"] = paper.on_paper(law, huge, checks)
        result["paper"]["sizes"] = asdict(huge) | {"masks_per_client": huge.masks}
    return result


def upload_bytes(sizes: Sizes) -> dict[str, float]:
    """Bytes of an upload message per coordinate, by modulus bits: of real rounds of three."""
    small = Sizes(3, sizes.dim, 0, 2, 0)
    found = {}
    for bits in _BITS:
        cost = ours.run(small.at(sizes.dim, bits))
        found[str(bits)] = cost.upload_bytes / sizes.dim
    return found


def _neighbourhoods(n: int) -> list[tuple[int, int]]:
    """Flower's example, and an odd neighbourhood of about 2 log2 n with two thirds to open."""
    around = 2 * n.bit_length() + 1
    return [EXAMPLE, (around, 2 * around // 3 + 1)]


def _total(cost: Cost | FlowerCost) -> float:
    return cost.client_sum + cost.server_sum


def _ratio(ours_: list[Cost], theirs: FlowerCost) -> float:
    return median(map(_total, ours_)) / _total(theirs)


def _cpu(costs: list[Any]) -> dict[str, Any]:
    return {
        "client_cpu_s": {
            "median": median(c.client_median for c in costs),
            "sum": median(c.client_sum for c in costs),
        },
        "server_cpu_s": median(c.server_sum for c in costs),
        "total_cpu_s": Spread.of(map(_total, costs)).as_dict(),
    }


def _ours(costs: list[Cost]) -> dict[str, Any]:
    last = costs[-1]
    return _cpu(costs) | {
        "sizes": asdict(last.sizes) | {"masks_per_client": last.sizes.masks},
        "sampled_clients": last.sampled_clients,
        "masks_per_client": last.neighbours,
        "client_cpu_s_by_stage": {k: median(v) for k, v in last.client.items()},
        "server_cpu_s_by_call": last.server,
        "sent_bytes_per_client": median(last.sent),
        "received_bytes_per_client": median(last.received),
        "upload_bytes": last.upload_bytes,
        "client_peak_bytes": last.client_peak,
        "server_memory_bytes": last.memory,
    }


def _flower(costs: list[FlowerCost]) -> dict[str, Any]:
    last = costs[-1]
    return _cpu(costs) | {
        "num_shares": last.num_shares,
        "threshold": last.threshold,
        "sampled_clients": last.sampled_clients,
        "client_cpu_s_by_stage": {k: median(v) for k, v in last.client.items()},
        "server_cpu_s_by_part": last.server,
        "sent_bytes_per_client": last.sent_bytes,
        "upload_bytes": last.upload_bytes,
        "client_peak_bytes": last.client_peak,
        "server_replies_bytes": last.upload_bytes * (last.clients - last.dropped),
    }


def _machine(threads: int) -> dict[str, Any]:
    cpus = len(os.sched_getaffinity(0))
    names = ("flwr", "cryptography", "numpy", "pycryptodome")
    return {
        "cpus": cpus,
        "threads": {"ours_client": 1, "ours_server": threads, "flower_shamir": cpus},
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The tables for people."""
    sizes, machine = result["sizes"], result["machine"]
    console.print(
        f"{sizes['clients']} clients, d = {sizes['dim']:,}, {sizes['dropped']} drop out as they "
        f"upload, T = {sizes['threshold']}, c = {sizes['colluding']}, "
        f"{sizes['masks_per_client']:.0f} masks a client, modulus 2^{sizes['bits']}; "
        f"{machine['cpus']} CPUs, threads {machine['threads']}, "
        f"repeats {result['repeats']}, in turns"
    )
    table = Table("CPU seconds", "measured", "a client", "clients", "server", "total", "bytes sent")
    rows = [("fedattn", result["ours"]), (_name(result["flower"]), result["flower"])]
    rows += [(_name(each), each) for each in result["flower_sparse"]]
    if "large" in result:
        rows.append((f"fedattn, n = {result['large']['sizes']['clients']}", result["large"]))
    for name, row in rows:
        cpu = row["client_cpu_s"]
        table.add_row(
            name,
            str(row["sampled_clients"]),
            f"{cpu['median']:.4g}",
            f"{cpu['sum']:.4g}",
            f"{row['server_cpu_s']:.4g}",
            f"{row['total_cpu_s']['median']:.4g}",
            f"{row['sent_bytes_per_client']:,.0f}",
        )
    console.print(table)
    spread, mask = result["cpu_ratio_spread"], result["mask_ratio_spread"]
    console.print(
        f"cpu_ratio (fedattn / Flower, same graph): {spread['median']:.4f} "
        f"[{spread['min']:.4f}, {spread['max']:.4f}], at most 0.10"
    )
    for each in result["flower_sparse"]:
        console.print(f"  beside {_name(each)}: {each['cpu_ratio']:.3f}")
    console.print(
        f"mask_ratio (fedattn / bare AES-256-CTR loop): {mask['median']:.3f} "
        f"[{mask['min']:.3f}, {mask['max']:.3f}], at most 1.5; with key agreement "
        f"{result['mask_ratio_with_keys']['median']:.3f}"
    )
    by_bits = result["upload_bytes_per_coordinate"].items()
    console.print(
        "upload bytes a coordinate: " + ", ".join(f"{b} bits {value:.4f}" for b, value in by_bits)
    )
    console.print(f"server peak over the shares, vectors: {result['server_peak_vectors']:.2f}")
    if "large" in result:
        large = result["large"]
        console.print(
            f"  at {large['sizes']['clients']} clients: {large['server_peak_vectors']:.2f}, "
            f"at most 8; {large['masks_per_client']:.0f} masks a client; sum exact at d = 100 with "
            f"all clients: {large['is_exact_at_small_dim']}"
        )
    if "paper" in result:
        _show_paper(result["paper"], console)


def _name(row: dict[str, Any]) -> str:
    return f"Flower, {row['num_shares']} shares"


def _show_paper(row: dict[str, Any], console: Console) -> None:
    sizes = row["sizes"]
    console.print(
        f"on paper, {sizes['clients']:,} clients, k = {sizes['degree']}, "
        f"t = {sizes['share_threshold']}: client {row['client_cpu_s']:.3g} s, server "
        f"{row['server_cpu_s']:.4g} s, total {row['total_cpu_s']:.4g} s"
    )
    for side, laws in row["fit"].items():
        for step, law in laws.items():
            terms = " + ".join(f"{value:.3g} {term}" for term, value in law.items() if value)
            console.print(f"  {side} {step} = {terms or 0} s", markup=False, highlight=False)
    for check in row["checks"]:
        console.print(
            f"  fitted / measured at {check['clients']} clients, d = {check['dim']:,}: client "
            f"{check['client_fitted_over_measured']:.2f}, "
            f"server {check['server_fitted_over_measured']:.2f}"
        )
