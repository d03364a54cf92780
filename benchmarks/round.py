"""A cross-device round beside a plain torch loop: `python -m benchmarks.round [--json]`.

`configs/cross_device.yaml` (814 people, about 98 a round, real conversations) is simulated whole:
ServerApp, ClientApps, policies, ledgers on disk, signatures, noise shares, decoding, release. The
plain loop does the same local steps for the same people with model, data and SGD alone, on the
same cores, and averages. `throughput_ratio` is its time over ours, round by round; the first round
of a run, in which processes start and code is read, is left out on both sides.

`arithmetic` skips the masks (`secure_aggregation`), `masked` is the protocol as it is deployed.
Measuring quality between rounds is switched off on our side; the plain loop has none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.secagg.spread import Spread
from fedattn.batches import Record, collate, pair
from fedattn.checkpoint import read_vector, write_vector
from fedattn.client_change import longest_record
from fedattn.config import Config, load_config
from fedattn.contribution import installed_start, records
from fedattn.entries import Intent
from fedattn.flower.observer import RoundSummary, SilentObserver
from fedattn.ledger import read_ledger
from fedattn.model import AttentionGenerator, trainable_names
from fedattn.randomness import Randomness
from fedattn.report import LEDGER_FILE
from fedattn.simulate import simulate
from fedattn.tokens import Tokenizer
from fedattn.train import record_losses

GOAL = 0.9
CONFIG = Path(__file__).parent.parent / "configs" / "cross_device.yaml"


class Stopwatch(SilentObserver):
    """Notes when rounds begin and end."""

    def __init__(self) -> None:
        self.ended = [0.0]
        self.seconds: list[float] = []

    def started(self, rounds: int, clients: int, bpb: float) -> None:
        """The first round begins."""
        self.ended = [time.perf_counter()]

    def round_ended(self, summary: RoundSummary) -> None:
        """A round was released."""
        assert summary.is_released
        now = time.perf_counter()
        self.seconds.append(now - self.ended[-1])
        self.ended.append(now)


def measure(rounds: int = 4, *, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Rounds of both kinds and the plain loop over the people of each of them."""
    found = {kind: _ours(kind, rounds, overrides) for kind in ("arithmetic", "masked")}
    config = _config("arithmetic", rounds, overrides)
    ratios = {}
    for kind, (seconds, cohorts) in found.items():
        plain = [_plain(config, cohort) for cohort in cohorts]
        ratios[kind] = {
            "throughput_ratio": Spread.of_ratios(plain[1:], seconds[1:]).as_dict(),
            "ours_s": Spread.of(seconds[1:]).as_dict(),
            "plain_s": Spread.of(plain[1:]).as_dict(),
            "clients": [len(cohort) for cohort in cohorts[1:]],
        }
    return {
        "threads_plain": torch.get_num_threads(),
        "workers": len(os.sched_getaffinity(0)),
        "rounds": rounds - 1,
        "goal": GOAL,
        "throughput_ratio": ratios["arithmetic"]["throughput_ratio"]["median"],
        **ratios,
    }


def _config(kind: str, rounds: int, overrides: tuple[str, ...]) -> Config:
    return load_config(
        CONFIG,
        [
            f"train.rounds={rounds}",
            f"secure_aggregation={kind}",
            "eval.examples=1",
            "eval.progress_examples=0",
            "eval.samples=0",
            *overrides,
        ],
    )


def _ours(
    kind: str, rounds: int, overrides: tuple[str, ...]
) -> tuple[list[float], list[list[int]]]:
    """Seconds of each round, and who took part in it."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        simulate(_config(kind, rounds, overrides), run_dir, observer=watch)
        people = {
            _public_key(device): int(device.name.removeprefix("client-")) - 1
            for device in (run_dir / "devices").glob("client-*")
        }
        intents = [
            entry.body
            for entry in read_ledger(run_dir / LEDGER_FILE)
            if isinstance(entry.body, Intent)
        ]
        return watch.seconds, [[people[key] for key in each.roster] for each in intents]


def _public_key(device: Path) -> str:
    from fedattn.signing import SigningKey

    return SigningKey.load(device / "identity.pem").public_bytes.hex()


def _plain(config: Config, people: list[int]) -> float:
    """Seconds of the same steps without anything around them."""
    model, _ = installed_start(config.model, config.seed)
    names = trainable_names(model, config.model.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    tokenizer = Tokenizer(model.shape.vocab_size)
    shards = [list(records(config.data, person, tokenizer)) for person in people]  # tokenised
    randomness = Randomness.from_os()
    before = read_vector(model, names)
    model.train()
    began = time.perf_counter()
    total = torch.zeros_like(before)
    for shard in shards:
        write_vector(model, names, before)
        _local_steps(model, tokenizer, shard, config, randomness)
        total += read_vector(model, names) - before
    write_vector(model, names, before + total / len(people))
    seconds = time.perf_counter() - began
    write_vector(model, names, before)
    return seconds


def _local_steps(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    shard: list[Record],
    config: Config,
    randomness: Randomness,
) -> None:
    usable = [record for record in shard if record.replies]
    usable = usable or [longest_record(model, tokenizer)]  # (as our clients do)
    shape, size = model.shape, config.train.expected_batch_size
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=config.train.learning_rate
    )
    for _ in range(config.train.local_steps):
        pairs = []
        for _ in range(size):
            record = usable[randomness.below(len(usable))]
            reply = record.replies[randomness.below(len(record.replies))]
            pairs.append(pair(record, reply, tokenizer, shape.context_tokens))
        batch = collate(pairs, tokenizer, shape.reply_tokens)
        optimizer.zero_grad(set_to_none=True)
        (record_losses(model, batch).sum() / size).backward()
        optimizer.step()


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    found = measure(given.rounds, overrides=tuple(given.set))
    if given.json:
        print(json.dumps(found))
        return
    print(
        f"{found['workers']} workers of one thread, plain loop with {found['threads_plain']} "
        f"threads, {found['rounds']} rounds, median [range]"
    )
    for kind in ("arithmetic", "masked"):
        each = found[kind]
        ratio, ours = each["throughput_ratio"], each["ours_s"]
        print(
            f"{kind:<11} throughput ratio {ratio['median']:.2f} "
            f"[{ratio['min']:.2f}, {ratio['max']:.2f}], {ours['median']:.1f} s a round of "
            f"{statistics.mean(each['clients']):.0f} clients"
        )


if __name__ == "__main__":
    main()
