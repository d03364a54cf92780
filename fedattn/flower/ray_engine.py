"""The Ray engine: Flower's simulation of many clients on processes of this machine or a cluster.

The same ServerApp and ClientApp as on every engine. The ServerApp runs in this thread; Flower's
simulation, in another, hands each message to a Ray actor, which executes the fedattn installed on
the machine that the actor runs on. A virtual node knows its `partition-id` alone, so an actor
finds devices under `$FEDATTN_DEVICES`. Whoever runs Ray plays everybody: as on the embedded grid,
no privacy from the operator of the machines.

`RAY_ADDRESS` joins a cluster that runs already and is left running. Otherwise Ray is started
here, and stopped before `run` returns or raises. Needs the extra `sim`.

Flower marks `run_simulation`, its public way in, as deprecated; it can neither pass a run config
nor be told who watches. So this module puts together the parts that it is made of.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self, cast

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import (
    HEARTBEAT_INTERVAL_INF,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
)
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import _register_node_info_stores, run_api
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from fedattn.config import Config
from fedattn.errors import RunError
from fedattn.flower.client_app import DEVICES_VARIABLE
from fedattn.flower.client_app import app as client_app
from fedattn.flower.observer import Observer
from fedattn.flower.server_app import app as server_app

_RUN_ID, _TASK_ID = 1, 1
_SILENT = {  # read when Ray is imported, or by the processes that it starts
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end must fail, not start Ray anew
}


def require_runnable(config: Config) -> None:
    """RunError, with the remedy, if `config` cannot run on Ray."""
    if find_spec("ray") is None:
        raise RunError("engine ray: Ray is not installed; run `pip install 'fedattn[sim]'`")
    if config.faults:
        raise RunError(
            "engine ray: `faults` are acted out by the embedded engine alone; drop them, or drop "
            "--engine ray"
        )
    if re.fullmatch(r"cuda:0*[1-9]\d*", config.train.device):
        raise RunError(
            f"engine ray: train.device is {config.train.device}, but Ray shows each client the one "
            "GPU that it chose; use cuda:0 or auto"
        )


def client_resources(config: Config, cpus: float, gpus: float) -> dict[str, float]:
    """What Ray reserves for one client, on machines with `cpus` and `gpus` together.

    A CPU for each of `train.threads`, one at least; a GPU if `train.device` wants one, where
    `auto` wants one if there is any. RunError if there are too few of either.
    """
    threads, device = max(1, config.train.threads), config.train.device
    if threads > cpus:
        raise RunError(
            f"engine ray: train.threads is {threads}, and Ray has {cpus:g} CPUs; lower it"
        )
    if device.startswith("cuda") and gpus < 1:
        raise RunError(f"engine ray: train.device is {device}, and Ray has no GPU; use cpu")
    wants_gpu = device != "cpu" and gpus >= 1
    return {"num_cpus": float(threads), "num_gpus": float(wants_gpu)}


def run(
    config: Config,
    run_dir: Path,
    run_config: dict[str, Any],
    devices_dir: Path,
    observer: Observer,
) -> None:
    """Run the ServerApp with `run_config` over `config.data.clients` clients; returns at its end.

    `devices_dir` holds the devices as `client-1`, `client-2`, ... and their `policy.yaml`; on a
    cluster every machine sees it, `run_dir` and the data under the same path. RunError if Ray is
    missing, cannot hold one client, or stops; what the ServerApp raises comes through.
    """
    require_runnable(config)
    environment = {
        DEVICES_VARIABLE: str(devices_dir.resolve()),
        "OMP_NUM_THREADS": str(max(1, config.train.threads)),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_HOME": str(run_dir.resolve() / "flwr-home"),
    }
    with _started(environment) as has:
        needed = client_resources(config, has.get("CPU", 0.0), has.get("GPU", 0.0))
        simulation = _Simulation(config.data.clients, needed)
        grid = RayGrid(simulation, observer)
        with simulation:
            context = Context(_RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config))
            server_app(grid, context)


@contextmanager
def _started(environment: dict[str, str]) -> Iterator[dict[str, float]]:
    """Ray with `environment` in every actor; yields the resources of all its machines."""
    os.environ.update(_SILENT)
    import ray

    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"include_dashboard": False} if address == "local" else {}
    flower = logging.getLogger("flwr")
    level = flower.level
    try:
        flower.setLevel(logging.WARNING)  # the observer says what a person should know
        with warnings.catch_warnings():
            # that a client which reserved no GPU will one day see them all
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
            ray.init(
                address=address,
                runtime_env={"env_vars": environment},
                logging_level="error",
                log_to_driver=False,
                **own,
            )
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
        flower.setLevel(level)


class InstalledClientApp(ClientApp):
    """fedattn's ClientApp by its name: an actor runs what is installed where it is.

    Pickled, Flower's object would carry the code of this process along.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer `message`."""
        return client_app(message, context)


_APP: Final = InstalledClientApp()


class _Simulation(threading.Thread):
    """Flower's simulation runtime; runs while the context lasts."""

    def __init__(self, clients: int, resources: dict[str, float]) -> None:
        super().__init__(name="ray-simulation")
        self.factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        self.flower_run = Run.create_empty(_RUN_ID)
        self.flower_run.primary_task_id = _TASK_ID
        self.flower_run.federation_id = NOOP_FEDERATION_ID
        from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

        backend_config: Any = {"client_resources": resources}
        self._backend = RayBackend(backend_config)
        self.error: Exception | None = None
        self._ended = threading.Event()
        self._partitions = self._register(clients)

    def _register(self, clients: int) -> dict[int, int]:
        """The run and its virtual nodes: node id -> partition id."""
        state = cast(InMemoryLinkState, self.factory.state())
        state.run_ids[_RUN_ID] = RunRecord(run=self.flower_run)
        state.task_store[_TASK_ID] = Task(task_id=_TASK_ID, run_id=_RUN_ID)
        TaskIdentity.task_id, TaskIdentity.run_id = _TASK_ID, _RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        nodes = {}
        for partition in range(clients):
            node = state.create_node(
                NOOP_FLWR_AID,
                NOOP_ACCOUNT_NAME,
                secrets.token_bytes(32),  # stands for a node key: nobody authenticates in here
                heartbeat_interval=HEARTBEAT_INTERVAL_INF,
            )
            state.acknowledge_node_heartbeat(node, HEARTBEAT_INTERVAL_INF)
            nodes[node] = partition
        return nodes

    def run(self) -> None:
        """Serve messages until the context ends; what goes wrong is kept in `error`."""
        try:
            run_api(
                app_fn=lambda: _APP,
                backend_fn=lambda: self._backend,
                nodes_mapping=self._partitions,
                state_factory=self.factory,
                node_info_stores=_register_node_info_stores(self._partitions, self.flower_run),
                f_stop=self._ended,
                metrics=VceMetrics(),
            )
        except Exception as error:
            self.error = error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        if kind is not None:
            self._abandon()
        self.join()

    def _abandon(self) -> None:
        """End the tasks under way, which would be waited for."""
        import ray

        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # each would say that it was ended
        pool = self._backend.pool
        for actor in [] if pool is None else [*pool.pool, *pool._future_to_actor.values()]:
            ray.kill(actor)


class RayGrid(InMemoryGrid):
    """The ServerApp's side of the simulation."""

    def __init__(self, simulation: _Simulation, observer: Observer) -> None:
        super().__init__(simulation.factory)
        self.set_run(simulation.flower_run)
        self.observer, self._simulation = observer, simulation

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to `dst_node_id`; `group_id` is the round."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived; RunError if there will be none, as Ray has stopped."""
        if not self._simulation.is_alive():
            raise RunError(f"engine ray: Flower's simulation ended: {self._simulation.error}")
        return super().pull_messages(message_ids)
