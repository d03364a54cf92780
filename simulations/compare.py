"""Private and non-private training side by side: the table of the README.

    python simulations/compare.py --repeats 3 configs/quickstart.yaml configs/central.yaml

Runs each config `repeats` times as `fedattn simulate --json` (each run draws its own noise from
the operating system) and prints mean and range. Run directories go to `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs") / f"compare-{int(time.time())}")
    options = parser.parse_args()
    print("| config | runs | epsilon | bpb before | bpb after: mean (range) | gain | wall s |")
    print("|---|---|---|---|---|---|---|")
    for config in options.configs:
        results = [
            run(config, options.out / f"{config.stem}-{n + 1}") for n in range(options.repeats)
        ]
        before = results[0]["bpb_before"]
        after = [result["bpb_after"] for result in results]
        epsilon = results[0]["epsilon"]
        print(
            f"| {config.stem} | {len(results)} "
            f"| {epsilon if isinstance(epsilon, str) else f'{epsilon:.2f}'} "
            f"| {before:.3f} | {statistics.mean(after):.3f} ({min(after):.3f}-{max(after):.3f}) "
            f"| {before - statistics.mean(after):.3f} "
            f"| {statistics.mean(result['wall_s'] for result in results):.0f} |",
            flush=True,
        )


def run(config: Path, out: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "fedattn.cli", "simulate", str(config), "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
