"""What the modes and their margins cost in utility: the tables of docs/utility.md.

    python simulations/study.py shipped epsilons quality --repeats 3 --jobs 2 --out runs/study

shipped    the configs as they are, central DP-SGD at equal noise, and no privacy at all
epsilons   the same recipes at epsilon 2 and 4
quality    cleaning and augmentation
modes      all six modes at epsilon 8 against an outsider; twins, margins, hypothetical: see each

Every job is one `fedattn simulate --json` with noise from the operating system; a job whose
result is there already is not run again. Noise is calibrated by the same code as `fedattn plan`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedattn.config import Config, Row, load_config
from fedattn.mechanism import Mechanism, threshold_of
from fedattn.privacy.calibration import calibrate
from fedattn.privacy.claims import show_epsilon
from fedattn.privacy.events import round_event
from fedattn.privacy.rows import row_spend
from fedattn.start import start_dimension

CONFIGS = Path(__file__).parent.parent / "configs"
EPSILON = 8.0
# One client that holds everything: what a trusted curator of the pooled data could do.
POOLED = ("data.clients=1", "secagg.threshold=1", "secagg.max_colluding=0")


@dataclass(frozen=True)
class Job:
    """A config with overrides, under a name; `study` is the table that it belongs to."""

    study: str
    name: str
    config: str
    sets: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Names the run: jobs of two studies that do the same share their results."""
        return hashlib.sha256(json.dumps([self.config, self.sets]).encode()).hexdigest()[:16]

    def load(self) -> Config:
        return load_config(CONFIGS / self.config, list(self.sets))

    def but(self, name: str, *sets: str, study: str | None = None) -> Job:
        return Job(study or self.study, name, self.config, (*self.sets, *sets))

    def meeting(self, epsilon: float, row: Row) -> Job:
        """The same job with the least noise that costs at most `epsilon` against `row`."""
        config = self.load()
        budget = f"privacy.epsilon_budget={{{row}: {epsilon}}}"
        made = calibrate(config, dimension_of(config), epsilon, [row])
        return self.but(
            self.name, f"privacy.noise_multiplier={made.privacy.noise_multiplier!r}", budget
        )


def dimension_of(config: Config) -> int:
    """d: trainable parameters."""
    return start_dimension(config.model)


def shipped() -> list[Job]:
    """Three configs as shipped; for silos the pooled step with their noise, and without any."""
    silo = Job("shipped", "cross_silo", "cross_silo.yaml")
    noise = ("privacy.noise=server", "privacy.epsilon_budget={outsider: 20.0}")
    sigma = f"privacy.noise_multiplier={_summed_sigma(silo.load())!r}"
    return [
        Job("shipped", "quickstart", "quickstart.yaml"),
        silo,
        Job("shipped", "cross_device", "cross_device.yaml"),
        silo.but("central DP-SGD, the noise of cross_silo", *noise, sigma, *POOLED),
        Job("shipped", "central, no privacy", "central.yaml"),
    ]


def epsilons() -> list[Job]:
    """The recipes of the shipped configs with the noise that epsilon 2 and 4 take."""
    found: list[Job] = []
    rows: tuple[tuple[str, Row], ...] = (
        ("quickstart", "outsider"),
        ("cross_silo", "collusion"),
        ("cross_device", "outsider"),
    )
    for name, row in rows:
        job = Job("epsilons", name, f"{name}.yaml")
        for epsilon in (2.0, 4.0):
            named = job.but(f"{name}, epsilon {epsilon:g} against {row}")
            found.append(named.meeting(epsilon, row))
    return found


def quality() -> list[Job]:
    """Cleaning and augmentation on the quickstart."""
    job = Job("quality", "quickstart", "quickstart.yaml")
    every = ("junk=true", "english=true", "min_reply_words=3", "mask_pii=true")
    return [
        job,
        job.but("all cleaning", *(f"data.clean.{each}" for each in every)),
        job.but("augment.turn_drop 0.2", "train.augment.turn_drop=0.2"),
        job.but("augment.truncate 0.3", "train.augment.truncate=0.3"),
        job.but("augment.paraphrase 0.2", "train.augment.paraphrase=0.2"),
    ]


def modes() -> list[Job]:
    """All six modes at epsilon 8 against an outsider, and none."""
    silo, device = Job("modes", "", "cross_silo.yaml"), Job("modes", "", "cross_device.yaml")
    server = ("privacy.noise=server", "privacy.epsilon_budget={outsider: 8.0}")
    jobs = [
        Job("modes", "conversation/local", "quickstart.yaml"),
        silo.but("conversation/distributed"),
        silo.but("conversation/server", *server),
        device.but("client/distributed"),
        device.but("client/server", *server),
    ]
    none = Job("modes", "none", "central.yaml")
    return [*(job.meeting(EPSILON, "outsider") for job in jobs), none]


def twins() -> list[Job]:
    """Each distributed mode, and its server twin and the pooled step with exactly its noise."""
    found = []
    for unit, name in (("conversation", "cross_silo.yaml"), ("client", "cross_device.yaml")):
        job = Job("twins", f"{unit}/distributed", name).meeting(EPSILON, "outsider")
        config = job.load()
        sigma = _summed_sigma(config)
        equal = (
            "privacy.noise=server",
            f"privacy.noise_multiplier={sigma!r}",
            "privacy.epsilon_budget={outsider: 20.0}",
        )
        found += [job, job.but(f"{unit}/server, equal noise", *equal)]
        if unit == "conversation":
            found.append(job.but("pooled data, equal noise", *equal, *POOLED))
    return found


def margins() -> list[Job]:
    """Pooled-noise runs whose noise grows by one margin after the other."""
    silo = Job("margins", "", "cross_silo.yaml")
    config = silo.load()
    d, n, threshold = dimension_of(config), config.data.clients, config.secagg.threshold
    server = silo.but("no margin: Gaussian noise, PLD and PRV", "privacy.noise=server")
    server = server.but(server.name, "privacy.epsilon_budget={outsider: 8.0}")
    plain = server.meeting(EPSILON, "outsider")
    renyi = _renyi_sigma(config, d)
    honest = threshold_of(config, n) - config.secagg.max_colluding
    steps = [
        ("+ accounting: Skellam by Renyi", renyi),
        ("+ dropouts: shares for T, not n", renyi * math.sqrt(n / threshold)),
        ("+ collusion: shares for T - c", renyi * math.sqrt(n / honest)),
    ]
    return [plain, *(server.but(name, f"privacy.noise_multiplier={s!r}") for name, s in steps)]


def hypothetical() -> list[Job]:
    """The simulated cohort of configs/cross_device_hypothetical.yaml."""
    return [Job("hypothetical", "cross_device_hypothetical", "cross_device_hypothetical.yaml")]


def _summed_sigma(config: Config) -> float:
    """The noise multiplier of the released sum, if nobody drops out."""
    mechanism, n = Mechanism(config, dimension_of(config)), config.data.clients
    total = mechanism.released_variance if mechanism.is_sampled else n * mechanism.share_variance(n)
    return math.sqrt(total) / mechanism.clip


def _renyi_sigma(config: Config, dimension: int) -> float:
    """The noise multiplier whose Skellam sum, all of it counted, costs EPSILON."""
    low, high = 0.2, 5.0
    while high - low > 1e-4:
        sigma = (low + high) / 2
        privacy = config.privacy.model_copy(update={"noise_multiplier": sigma})
        made = config.model_copy(update={"privacy": privacy})
        # the collusion row counts exactly mu, the variance that noise_multiplier states
        events = [round_event(made, dimension)] * config.train.rounds
        if row_spend(made, events, "collusion").epsilon > EPSILON:
            low = sigma
        else:
            high = sigma
    return high


STUDIES = {
    "shipped": shipped,
    "epsilons": epsilons,
    "quality": quality,
    "modes": modes,
    "twins": twins,
    "margins": margins,
    "hypothetical": hypothetical,
}


def run(job: Job, number: int, out: Path, threads: int) -> dict:
    """The result of one run, from disk if it was made before."""
    folder = out / f"{job.digest}-{number}"
    result = folder.with_suffix(".json")
    if not result.exists():
        sets = [
            part for each in (*job.sets, f"train.threads={threads}") for part in ("--set", each)
        ]
        command = [sys.executable, "-m", "fedattn.cli", "simulate", str(CONFIGS / job.config)]
        done = subprocess.run(
            [*command, *sets, "--out", str(folder), "--json"], stdout=subprocess.PIPE, text=True
        )
        if not done.stdout:
            sys.exit(f"{job.name}: no result (exit code {done.returncode}); remove {folder}")
        found = json.loads(done.stdout)
        report = json.loads((folder / "report.json").read_text())
        found["validation"] = report["quality"]["validation"]
        found["noise_multiplier"] = job.load().privacy.noise_multiplier
        result.write_text(json.dumps(found))
    return json.loads(result.read_text())


def table(jobs: Sequence[Job], results: dict[str, list[dict]]) -> Iterable[str]:
    """Markdown: a row a job, mean and range over its repeats."""
    rows = "outsider, server, collusion, unmasked"
    yield f"| run | repeats | sigma | epsilon: {rows} | bpb: mean (range) | gain | s |"
    yield "|---|---|---|---|---|---|---|"
    for job in jobs:
        found = results[job.digest]
        after = [each["bpb_after"] for each in found]
        epsilons = found[0]["epsilons"]
        shown = ", ".join(
            show_epsilon(epsilons[row]) if isinstance(epsilons[row], float) else "inf"
            for row in ("outsider", "server", "collusion", "unmasked")
        )
        mean = statistics.mean(after)
        yield (
            f"| {job.name} | {len(found)} | {found[0]['noise_multiplier']:.4g} | {shown} "
            f"| {mean:.4f} ({min(after):.4f}-{max(after):.4f}) "
            f"| {found[0]['bpb_before'] - mean:.3f} "
            f"| {statistics.mean(each['wall_s'] for each in found):.0f} |"
        )


def rounds(jobs: Sequence[Job], results: dict[str, list[dict]]) -> Iterable[str]:
    """Markdown: mean validation bpb by round, a column a job."""
    yield "| round | " + " | ".join(job.name for job in jobs) + " |"
    yield "|---" * (len(jobs) + 1) + "|"
    columns = []
    for job in jobs:
        points: dict[int, list[float]] = {}
        for each in results[job.digest]:
            for point in each["validation"]:
                points.setdefault(point["round"], []).append(point["bpb"])
        columns.append(points)
    for number in sorted({number for points in columns for number in points}):
        cells = [f"{statistics.mean(p[number]):.3f}" if number in p else "" for p in columns]
        yield f"| {number} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [job for study in options.studies for job in STUDIES[study]()]
    unique = {job.digest: job for job in jobs}.values()
    tasks = [(job, n + 1) for n in range(options.repeats) for job in unique]
    threads = 1 if options.jobs > 1 else 0
    results: dict[str, list[dict]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        made = pool.map(lambda task: run(*task, options.out, threads), tasks)
        for (job, number), found in zip(tasks, made, strict=True):
            results.setdefault(job.digest, []).append(found)
            print(f"{job.name} {number}: {found['bpb_after']:.4f}", file=sys.stderr)
    for study in options.studies:
        chosen = [job for job in jobs if job.study == study]
        print(f"\n### {study}\n", *table(chosen, results), sep="\n")
        if study == "modes":
            print("\nValidation bpb by round:\n", *rounds(chosen, results), sep="\n")


if __name__ == "__main__":
    main()
