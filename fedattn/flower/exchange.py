"""Messages out, replies in as they come: what a round's stages and enrolment share.

Flower's own `send_and_receive` collects every reply before it returns, and sleeps for seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

_POLL_S = 0.2
_PULLED_AT_ONCE = 4  # Flower's HTTP grid inflates every reply of a call before it returns


def replies(
    grid: Grid,
    messages: Sequence[Message],
    timeout_s: float,
    push: Callable[[Sequence[Message]], Iterable[str]] | None = None,
) -> Iterator[tuple[int, Message]]:
    """Send `messages` and yield (place in `messages`, reply), until all came or time is up.

    Matched by message, not by sender: a reply that was cut off names the SuperLink as its sender.
    Whose node is gone is not waited for. A grid that `waits` yields each reply as it comes, and is
    asked for all of them at once, without pauses; who is slow there does not change a result.
    `push` sends them, if `grid.push_messages` is not to (`SummingGrid.push_summed`). What nobody
    waits for when this ends, or is left, is given up by a grid that can (`give_up`).
    """
    names = (grid.push_messages if push is None else push)(messages)
    places = {name: place for place, name in enumerate(names) if name}
    waiting = dict.fromkeys(places)  # in order
    deadline = time.monotonic() + timeout_s
    try:
        while waiting:
            asked, arrived = list(waiting), 0
            at_once = len(asked) if getattr(grid, "waits", False) else _PULLED_AT_ONCE
            for start in range(0, len(asked), at_once):
                for reply in grid.pull_messages(asked[start : start + at_once]):
                    name = reply.metadata.reply_to_message_id
                    if name not in waiting:
                        continue  # an answer to something else
                    del waiting[name]
                    arrived += 1
                    yield places[name], reply
            if waiting and time.monotonic() > deadline:
                return
            if waiting and not arrived:
                time.sleep(_POLL_S)
    finally:
        if waiting and hasattr(grid, "give_up"):
            grid.give_up(waiting)
