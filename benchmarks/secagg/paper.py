"""What a cohort too large to run would cost: laws fitted to small rounds, printed, and checked.

Every step has a law, a sum of terms in n (clients), m (masks of one client), k t (Shamir), T
(confirmations), d (coordinates), whose coefficients are fitted by non-negative least squares of
relative errors. Rounds that took no part in the fit say how far it is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.secagg import ours
from benchmarks.secagg.ours import Cost
from benchmarks.secagg.sizes import Sizes

Term = Callable[[Sizes], float]


def _staying(s: Sizes) -> float:
    return s.clients - s.dropped


def _shares(s: Sizes) -> float:
    return s.degree or s.clients


def _opening(s: Sizes) -> float:
    return s.share_threshold or s.threshold


TERMS: dict[str, Term] = {
    "1": lambda s: 1,
    "m": lambda s: s.masks,
    "k t": lambda s: _shares(s) * _opening(s),
    "n": lambda s: s.clients,
    "T": lambda s: s.threshold,
    "d": lambda s: s.dim,
    "m d": lambda s: s.masks * s.dim,
    "n m": lambda s: s.clients * s.masks,
    "n t^2": lambda s: s.clients * _opening(s) ** 2,
    "n d": lambda s: _staying(s) * s.dim,
    "n^2": lambda s: s.clients**2,
    "masks": lambda s: _staying(s) + s.dropped * s.masks,
    "masks d": lambda s: (_staying(s) + s.dropped * s.masks) * s.dim,
}
CLIENT: dict[str, tuple[str, ...]] = {
    "advertise": ("1", "m"),
    "share": ("1", "m", "k t"),
    "encode": ("1", "d"),
    "upload": ("1", "m", "d", "m d"),
    "confirm": ("1", "n"),
    "unmask": ("1", "T", "m"),
}
SERVER: dict[str, tuple[str, ...]] = {
    "advertised": ("n", "n m"),
    "key_list": ("n", "n m"),
    "shared": ("n", "n m"),
    "mailbox": ("n", "n m"),
    "uploaded": ("n", "n d"),
    "survivors": ("1", "n"),
    "confirmed": ("n",),
    "confirmations": ("n", "n^2"),
    "revealed": ("n", "n m"),
    "total": ("n", "n m", "n t^2", "masks", "masks d"),
    "decode": ("1", "d"),
}
_GRAPHS = ((24, 6, 3), (48, 12, 7), (96, 16, 8), (96, 30, 22), (180, 20, 12), (180, 50, 38))


@dataclass(frozen=True)
class Fit:
    """Coefficients in seconds per unit of each term, by step of each side."""

    client: Mapping[str, Mapping[str, float]]
    server: Mapping[str, Mapping[str, float]]

    def client_cpu(self, sizes: Sizes) -> float:
        """One survivor's CPU, seconds."""
        return _sum(self.client, sizes)

    def server_cpu(self, sizes: Sizes) -> float:
        """The server's CPU, seconds."""
        return _sum(self.server, sizes)


def fit(clients: int, dim: int) -> Fit:
    """Run rounds of up to 2 `clients` and dim / 5 coordinates, and fit every step's law."""
    costs = [
        ours.run(
            Sizes(n, d, max(n // 20, 1), n // 2 + 1, 0, degree, threshold),
            sampled=12,
            any_security=True,
        )
        for n, degree, threshold in _GRAPHS
        if n <= max(2 * clients, 48)
        for d in (max(dim // 1000, 10), dim // 20, dim // 5)
    ]
    client = {
        step: _solve(costs, terms, lambda c, step=step: float(np.median(c.client[step])))
        for step, terms in CLIENT.items()
    }
    server = {
        step: _solve(costs, terms, lambda c, step=step: c.server[step])
        for step, terms in SERVER.items()
    }
    return Fit(client, server)


def _solve(
    costs: Sequence[Cost], terms: Sequence[str], measured: Callable[[Cost], float]
) -> dict[str, float]:
    seconds = np.array([measured(cost) for cost in costs])
    table = np.array([[float(TERMS[term](cost.sizes)) for term in terms] for cost in costs])
    table /= seconds[:, None]  # relative errors: a small round counts as much as a large one
    largest = table.max(axis=0)
    solution, _ = nnls(table / largest, np.ones(len(costs)))
    return dict(zip(terms, (solution / largest).tolist(), strict=True))


def _sum(laws: Mapping[str, Mapping[str, float]], sizes: Sizes) -> float:
    return sum(
        coefficient * TERMS[term](sizes)
        for law in laws.values()
        for term, coefficient in law.items()
    )


def on_paper(law: Fit, sizes: Sizes, checks: Sequence[Cost]) -> dict[str, Any]:
    """The cost of `sizes` by the fit, and the fit's error on rounds that were measured."""
    client, server = law.client_cpu(sizes), law.server_cpu(sizes)
    return {
        "sizes": sizes,
        "client_cpu_s": client,
        "server_cpu_s": server,
        "total_cpu_s": client * sizes.clients + server,
        "fit": {"client": law.client, "server": law.server},
        "checks": [
            {
                "clients": cost.sizes.clients,
                "dim": cost.sizes.dim,
                "client_fitted_over_measured": law.client_cpu(cost.sizes) / cost.client_median,
                "server_fitted_over_measured": law.server_cpu(cost.sizes) / cost.server_sum,
            }
            for cost in checks
        ],
    }
