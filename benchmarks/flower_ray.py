"""Flower's own Ray simulation of idle clients: `python -m benchmarks.flower_ray N PARAMS ROUNDS`.

Its FedAvg, its client, its messages; each client adds 1 to the model. The last line of the output
is a JSON object. Needs the `sim` extra.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client, server = ClientApp(), ServerApp()
took: list[float] = []
N, PARAMS, ROUNDS = (int(given) for given in sys.argv[1:4]) if len(sys.argv) == 4 else (0, 0, 0)


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1.0})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=N)
    began = time.perf_counter()
    strategy.start(grid, ArrayRecord([np.zeros(PARAMS, np.float32)]), num_rounds=ROUNDS)
    took.append(time.perf_counter() - began)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # run_simulation is deprecated, and is what it is
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, N, backend_config=resources)
    print(json.dumps({"ms_per_client_round": took[0] / N / ROUNDS * 1e3}))
