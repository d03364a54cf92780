"""Weights & Biases: a run that stays on this machine unless its upload is asked for by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

from fedattn.errors import RunError
from fedattn.tracking.released import MEANINGS, Plain

PROJECT = "fedattn"
_ENOUGH_S = 60.0  # for wandb to start, and at the end to write and upload
_NOTHING = ""


class WandbRun:
    """A Tracker that logs to Weights & Biases; needs the extra `tracking`.

    Offline it writes a folder that `wandb sync` uploads, should somebody want to; `is_online`
    uploads as it goes. Either way wandb collects nothing of its own: no system metrics, code, git
    state, packages, console, host, user or program; and it sends no reports about itself.
    """

    def __init__(self, folder: Path, title: str, *, is_online: bool = False) -> None:
        self.name = "wandb-online" if is_online else "wandb"
        self._folder, self._title, self._is_online = folder, title, is_online
        self._run: Any = None

    def begin(self, labels: Sequence[str], config: Mapping[str, Plain]) -> None:
        """Start the run: labels are tags, notes and part of its name."""
        # read when wandb is imported and when it starts its own process
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        if self._is_online and not wandb.login(prompt=False):
            raise RunError("not logged in; run `wandb login`, or track by `wandb`, offline")
        self._folder.mkdir(parents=True, exist_ok=True)
        short = [label.partition(":")[0] for label in labels]
        mode = "online" if self._is_online else "offline"
        self._run = wandb.init(
            project=PROJECT,
            name=" ".join([*(f"[{label}]" for label in short), self._title]),
            tags=short,
            notes="\n".join(labels) or None,
            config=dict(config),
            settings=wandb.Settings(**_quiet(self._folder, mode)),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values as of `step`."""
        self._run.log({key: values[key] for key in MEANINGS if key in values}, step=step)

    def close(self, *, is_complete: bool) -> None:
        """Finish the run, and remove wandb's debug logs: they are full of this machine's paths.

        wandb's own process writes the last bytes of the file, perhaps a moment later.
        """
        if self._run is None:
            return
        logs = Path(self._run.settings.log_internal).parent
        try:
            self._run.finish(exit_code=0 if is_complete else 1)
        finally:
            rmtree(logs, ignore_errors=True)


def _quiet(folder: Path, mode: str) -> dict[str, Any]:
    """Settings that an environment variable or a settings file of wandb's does not override."""
    return {
        "mode": mode,
        "root_dir": str(folder),
        "reinit": "create_new",  # leave a notebook's own run alone
        "init_timeout": _ENOUGH_S,
        "finish_timeout": _ENOUGH_S,
        "finish_timeout_raises": True,
        "stop_fn": lambda: None,  # the site's stop button would interrupt the training
        "silent": True,
        "console": "off",
        "symlink": False,
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "label_disable": True,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "x_executable": _NOTHING,
        "host": "-",
        "username": _NOTHING,
        "email": _NOTHING,
        "program": PROJECT,
        "program_abspath": _NOTHING,
        "program_relpath": PROJECT,
    }
