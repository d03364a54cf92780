"""Reconstructing a secret when some of its shares are lies.

Every secret has a public check (a commitment, or a public key), so a wrong subset of shares is
noticed, never used. With r shares, sets of up to r - t liars are left out, smallest sets first,
within `MAX_SUBSETS` reconstructions per secret: that finds one liar up to t = 1,023, two up to
t = 43, three up to t = 16. Whoever had to be left out is tried last for the next secret, so
liars are searched for once, not once per secret. (Lies that cancel can make a suspect of an
innocent: it is tried last, nothing more.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

from fedattn.secagg.shamir import combine

MAX_SUBSETS = 1024


class Recovery:
    """Reconstructs the secrets of one round, remembering which members' shares were wrong."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self.suspects: set[int] = set()

    def secret(self, shares: Mapping[int, int], accepts: Callable[[bytes], bool]) -> bytes | None:
        """The 32-byte secret that `accepts`, from shares {x: f(x)}.

        None if fewer than t shares are given or no subset that was tried is accepted.
        """
        t = self._threshold
        order = sorted(shares, key=lambda x: (x in self.suspects, x))
        tried = 0
        for left_out in range(len(order) - t + 1):
            # only among the first t + left_out does leaving out change which t are used; and
            # never the last of them: that subset was tried with fewer left out
            for lies in combinations(order[: t + left_out - 1], left_out):
                if tried == MAX_SUBSETS:
                    return None
                tried += 1
                used = [x for x in order[: t + left_out] if x not in lies]
                secret = combine({x: shares[x] for x in used})
                if secret is not None and accepts(secret):
                    self.suspects.update(lies)
                    return secret
        return None
