"""`python -m benchmarks.secagg --clients 100 --dim 1000000 --dropout 0.05 [--json]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich.console import Console

from benchmarks.secagg.report import measure, show
from benchmarks.secagg.sizes import Sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print tables or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secagg", description=__doc__)
    parser.add_argument("--clients", type=int, default=100, help="n of the comparison")
    parser.add_argument("--dim", type=int, default=1_000_000, help="coordinates of a vector")
    parser.add_argument("--dropout", type=float, default=0.05, help="share that drops out")
    parser.add_argument("--colluding", type=float, default=0.33, help="share that may collude")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the comparison")
    parser.add_argument(
        "--sampled-clients",
        type=int,
        default=4,
        help="clients measured and scaled: Flower's, and those that mask in the large cohort",
    )
    parser.add_argument("--large", type=int, default=1_000, help="n of ours alone; 0: none")
    parser.add_argument("--paper", type=int, default=10_000, help="n from fitted costs; 0: none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)

    def sizes(clients: int) -> Sizes:
        return Sizes.of(clients, given.dim, given.dropout, given.colluding)

    result = measure(
        sizes(given.clients),
        repeats=given.repeats,
        sampled=given.sampled_clients,
        large=sizes(given.large) if given.large else None,
        huge=sizes(given.paper) if given.paper else None,
    )
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        show(result, Console())


if __name__ == "__main__":
    main()
