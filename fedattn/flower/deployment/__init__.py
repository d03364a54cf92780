"""A federation on real machines: start commands, admitted nodes, runs. DESIGN sections 4 and 8.

folders.py    what the processes read from a server's and a device's folder
commands.py   the start commands: the only place that knows them
processes.py  start: one process, or all of a folder, watched
loopback.py   TLS between the processes of a server
nodes.py      whom the SuperLink lets in
control.py    its Control API
submit.py     run: register, start, follow, end
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedattn.flower.deployment.processes import start
    from fedattn.flower.deployment.submit import Deployed, run

__all__ = ["Deployed", "run", "start"]


def __getattr__(name: str) -> Any:
    """A device's processes are watched without importing Flower, which a run needs."""
    if name == "start":
        from fedattn.flower.deployment import processes

        return processes.start
    if name in ("Deployed", "run"):
        from fedattn.flower.deployment import submit

        return getattr(submit, name)
    raise AttributeError(name)
