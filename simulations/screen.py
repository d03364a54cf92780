"""A first look at recipes: central DP-SGD on the pooled data, in this process, validation alone.

    python simulations/screen.py JOBS.jsonl --out runs/screen.jsonl

A job is a line {"name", "set": [overrides of configs/cross_silo.yaml], "epsilon", "noise"}. It
takes the steps that eight silos would take together (docs/utility.md: equal within 0.05 %), with
the noise that their shares add up to or, with "noise": "local", that of each of them in full (one
local SGD step a round), from the operating system. It stands for a run to choose what to run;
it makes no report, and what it prints of private data is validation bpb. Test is never read.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fedattn.batches import tokenize
from fedattn.checkpoint import read_vector, start_model, write_vector
from fedattn.config import Config, load_config
from fedattn.data import load_partition
from fedattn.generate import bits_per_byte, choose_pairs
from fedattn.mechanism import threshold_of
from fedattn.model import trainable_names
from fedattn.noise import gaussian
from fedattn.privacy.calibration import calibrate
from fedattn.protocol import HELD_OUT_BYTES, SHAPE
from fedattn.randomness import Randomness
from fedattn.records import Pair, Record, training_records
from fedattn.server_optimizer import ServerOptimizer
from fedattn.start import start_facts
from fedattn.tokens import Tokenizer
from fedattn.train import train_locally

CONFIG = Path(__file__).parent.parent / "configs" / "cross_silo.yaml"
POOLED = ("data.clients=1", "secagg.threshold=1", "secagg.max_colluding=0", "privacy.noise=server")
VALIDATION = 400  # replies of a point of the curve
EVERY = 4  # steps


def shares_factor(config: Config) -> float:
    """The noise of all shares over what the honest survivors' must add up to."""
    n = config.data.clients
    return math.sqrt(n / (threshold_of(config, n) - config.secagg.max_colluding))


def load_job(job: dict) -> tuple[Config, float]:
    """The pooled config, and sigma: as calibrated times what shares add."""
    epsilon = float(job.get("epsilon", 8.0))
    sets = [*job["set"], f"privacy.epsilon_budget={{outsider: {epsilon}}}"]
    silos = load_config(CONFIG, sets)
    config = load_config(CONFIG, [*sets, *POOLED])
    model = start_model(config.model)
    dimension = len(read_vector(model, trainable_names(model, config.model.trainable)))
    made = calibrate(config, dimension, epsilon, ["outsider"])
    n = silos.data.clients
    factor = math.sqrt(n) if job.get("noise") == "local" else shares_factor(silos)
    return config, made.privacy.noise_multiplier * factor


def run(config: Config, sigma: float, records: Sequence[Record], pairs: Sequence[Pair]) -> dict:
    """Train; validation bpb by step, and how the last sum compares with its noise."""
    torch.set_num_threads(config.train.threads or 1)
    tokenizer, model = Tokenizer(SHAPE.vocab_size), start_model(config.model)
    names = trainable_names(model, config.model.trainable)
    vector, optimizer = read_vector(model, names), ServerOptimizer(config.train)
    randomness, began, curve = Randomness.from_os(), time.monotonic(), []
    scale = sigma * config.privacy.clip_norm
    for step in range(config.train.rounds + 1):
        if step % EVERY == 0 or step == config.train.rounds:
            write_vector(model, names, vector)
            curve.append((step, round(bits_per_byte(model.eval(), pairs, tokenizer).bpb, 4)))
        if step == config.train.rounds:
            break
        write_vector(model, names, vector)
        total = train_locally(model, tokenizer, records, config, randomness).delta
        noise = scale * torch.from_numpy(gaussian(len(vector), randomness)).float()
        mean = (total + noise) / config.train.expected_batch_size
        vector = optimizer.step(vector, -mean.double(), step + 1)
    return {
        "d": len(vector),
        "sigma": round(sigma, 4),
        "noise_to_signal": round(scale * math.sqrt(len(vector)) / float(total.norm()), 2),
        "validation": curve,
        "seconds": round(time.monotonic() - began),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the jobs that have no result in `--out` yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    done = set()
    if given.out.exists():
        done = {json.loads(line)["job"] for line in given.out.read_text().splitlines()}
    given_data = load_config(CONFIG, list(POOLED)).data
    data, tokenizer = load_partition(given_data), Tokenizer(SHAPE.vocab_size)
    records = training_records(data.train[0], tokenizer, given_data)
    held_out = tokenize(data.validation, tokenizer, HELD_OUT_BYTES)
    pairs = choose_pairs(held_out, tokenizer, SHAPE.context_tokens, VALIDATION, "validation")
    for line in given.jobs.read_text().splitlines():
        if not line or line.startswith("#") or line in done:
            continue
        job = json.loads(line)
        config, sigma = load_job(job)
        shape = start_facts(config.model).architecture
        if config.data != given_data or shape.vocab_size != SHAPE.vocab_size:
            sys.exit(f"{job['name']}: data and vocabulary are {CONFIG.name}'s; drop the override")
        result = {"name": job["name"], "job": line, **run(config, sigma, records, pairs)}
        with given.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        shown = {key: value for key, value in result.items() if key != "job"}
        print(json.dumps(shown), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
