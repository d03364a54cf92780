"""The SuperLink's Control API, reachable from this machine alone: nodes and runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedattn.errors import RunError
from fedattn.flower.deployment.folders import ServerFolder
from fedattn.flower.deployment.loopback import CERTIFICATE

_Value = TypeVar("_Value")
_UNREGISTERED = "unregistered"


class UnreachableError(RunError):
    """No SuperLink answers; it may be starting."""


@dataclass(frozen=True)
class RunState:
    """What the SuperLink says of a run."""

    status: str  # pending, starting, running, finished
    sub_status: str  # completed, failed, stopped; empty before

    @property
    def is_finished(self) -> bool:
        """It will not change any more."""
        return self.status == "finished"


class Control:
    """A client of the Control API of the server's folder; a context manager.

    RunError, with the remedy, for whatever goes wrong.
    """

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder
        path = folder.path / CERTIFICATE
        if not path.exists():
            raise UnreachableError(f"{path}: the SuperLink never ran; start {folder.path}/start.sh")
        self._client = ControlHttpClient.from_server_address(
            folder.superlink,
            False,
            path.read_bytes(),
            [RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def wait(self, timeout_s: float) -> None:
        """Return once the SuperLink answers; RunError if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.nodes()
                return
            except UnreachableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def nodes(self) -> dict[bytes, int]:
        """The registered SuperNodes: node key (PEM) -> node id."""
        response = self._call(lambda: self._client.ListNodes(ListNodesRequest()))
        return {
            node.public_key: node.node_id
            for node in response.nodes_info
            if node.status != _UNREGISTERED
        }

    def online(self) -> int:
        """How many SuperNodes are connected."""
        response = self._call(lambda: self._client.ListNodes(ListNodesRequest()))
        return sum(node.status == "online" for node in response.nodes_info)

    def register_node(self, public_key: bytes, name: str) -> int:
        """Let the SuperNode with that node key (PEM) in; its node id."""
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(self._call(lambda: self._client.RegisterNode(request)).node_id)

    def unregister_node(self, node: int) -> None:
        """Let the SuperNode in no more."""
        request = UnregisterNodeRequest(node_id=node)
        self._call(lambda: self._client.UnregisterNode(request))

    def start_run(self, bundle: bytes, run_config: Mapping[str, str]) -> int:
        """Start a run of the bundle; its id."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(run_config))
        )
        response = self._call(lambda: self._client.StartRun(request))
        if not response.HasField("run_id"):
            raise RunError("the SuperLink did not start the run; see logs/superlink.log")
        return int(response.run_id)

    def run(self, run: int) -> RunState:
        """The state of a run; RunError if the SuperLink does not know it."""
        response = self._call(lambda: self._client.ListRuns(ListRunsRequest(run_id=run)))
        if run not in response.run_dict:
            raise RunError(
                f"the SuperLink at {self._folder.superlink} does not know the run {run}; was its "
                f"{self._folder.path / 'superlink.db'} replaced? Go on by --resume"
            )
        status = response.run_dict[run].status
        return RunState(status.status, status.sub_status)

    def stop_run(self, run: int) -> None:
        """End a run at once."""
        self._call(lambda: self._client.StopRun(StopRunRequest(run_id=run)))

    def _call(self, call: Callable[[], _Value]) -> _Value:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            reason = known.message if known is not None else f"HTTP {error.response.status_code}"
            raise RunError(f"the SuperLink refuses: {reason}") from None
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"no SuperLink at {self._folder.superlink} ({type(error).__name__}); start it: "
                f"{self._folder.path}/start.sh"
            ) from None
