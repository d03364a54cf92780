"""Numbers of a run for TensorBoard and Weights & Biases: released ones, and nothing else.

    with tracking(observer, ["tensorboard"], run_dir / "tracking", config) as watching:
        watching.finished(simulate(config, run_dir, observer=watching).report)

docs/tracking.md says what is logged and what is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fedattn.config import Config
from fedattn.errors import ConfigError, RunError
from fedattn.flower.observer import Observer
from fedattn.tracking.tracker import Tracker
from fedattn.tracking.tracking import Tracking

NAMES: Final = ("tensorboard", "wandb", "wandb-online")
FOLDER: Final = "tracking"  # of a run directory

__all__ = ["NAMES", "Tracker", "Tracking", "require_trackers", "tracking", "tracking_folder"]


def require_trackers(names: Sequence[str]) -> None:
    """ConfigError for a name that is not in NAMES; RunError if its package is not installed."""
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--track {name}: must be one of {', '.join(NAMES)}")
        package = name.partition("-")[0]
        spec = find_spec(package)
        if spec is None or spec.origin is None:  # a mere folder of that name has no origin
            raise RunError(
                f"--track {name}: {package} is not installed; run `pip install 'fedattn[tracking]'`"
            )


def tracking_folder(run_dir: Path, wanted: Path | None) -> Path:
    """Where the trackers of the run in `run_dir` write: in it, or in `wanted` under its name."""
    return run_dir / FOLDER if wanted is None else wanted / run_dir.resolve().name


@contextmanager
def tracking(
    watching: Observer, names: Sequence[str], folder: Path, config: Config
) -> Iterator[Tracking]:
    """An Observer that tells `watching` everything, and the named trackers what is released.

    They write to `folder`. RunError or ConfigError for a name that cannot be; whatever else fails
    drops a tracker with a note to `watching`.
    """
    require_trackers(names)
    trackers = [_tracker(name, folder, config) for name in dict.fromkeys(names)]
    with Tracking(watching, trackers, config) as observer:
        yield observer


def _tracker(name: str, folder: Path, config: Config) -> Tracker:
    from fedattn.tracking.event_file import EventFile
    from fedattn.tracking.wandb_run import WandbRun

    if name == "tensorboard":
        return EventFile(folder / "tensorboard")
    return WandbRun(folder, config.name, is_online=name == "wandb-online")
