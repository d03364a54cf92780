"""The one way a check of the protocol fails: by its stable name, before anything is revealed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from fedattn.errors import ProtocolError


def require(holds: bool, check: str, detail: str) -> None:
    """Raise ProtocolError(check, detail) unless `holds`.

    >>> require(1 < 2, "order", "one must come before two")
    """
    if not holds:
        raise ProtocolError(check, detail)


def is_ascending(indices: Sequence[int]) -> bool:
    """Whether every index is greater than the one before: one order, nobody twice.

    >>> is_ascending([1, 3]), is_ascending([3, 1]), is_ascending([1, 1])
    (True, False, False)
    """
    return all(a < b for a, b in pairwise(indices))


def require_members(
    where: str, shown: Sequence[int], *, within: Collection[int], threshold: int, itself: int
) -> None:
    """Check a set of members that the server shows to the client `itself`.

    Raises ProtocolError("<where>.distinct" | ".subset" | ".threshold" | ".self").
    """
    # (1) one member listed many times would count as a quorum; one canonical order, so that equal
    # sets have equal bytes
    require(
        is_ascending(shown),
        f"{where}.distinct",
        "members must be listed once each, in ascending order",
    )
    # (2) a member that was not in the stage before has no checked keys, or no shares
    allowed = within if isinstance(within, range) else frozenset(within)
    others = [index for index in shown if index not in allowed]
    first = min(others, default=0)
    require(not others, f"{where}.subset", f"member {first} was not in the stage before")
    # (3) below the threshold a colluding set may be all that is left beside us
    require(
        len(shown) >= threshold, f"{where}.threshold", f"{len(shown)} members, need {threshold}"
    )
    # (4) without ourselves, our own masks would be opened as a dropout's
    require(itself in shown, f"{where}.self", f"member {itself} itself is missing")


def require_drawn(
    where: str, shown: Collection[int], *, drawn: Sequence[int], share_threshold: int
) -> None:
    """Check, in a sparse graph, that t of the members we drew ourselves are shown.

    Raises ProtocolError("<where>.drawn").
    """
    # our own draws are the only neighbours that nobody could place around us, and they hold our
    # shares: with fewer than t of them we could be alone among colluders, or out of the sum
    seen = len(frozenset(shown).intersection(drawn))
    require(
        seen >= share_threshold,
        f"{where}.drawn",
        f"{seen} of the {len(drawn)} members it drew, need {share_threshold}",
    )
