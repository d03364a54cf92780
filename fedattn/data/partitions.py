"""A config's conversations with their owners, read once a process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fedattn.config import DataConfig
from fedattn.data.clean import require_cleaning
from fedattn.data.load import load_dialogues
from fedattn.data.splits import Partition, partition


def load_partition(config: DataConfig) -> Partition:
    """All conversations of `config` with their owners; a file that changed is read anew.

    DataError for what is wrong with the file, and if what `config.clean` needs is not installed.
    """
    require_cleaning(config.clean)
    return _partition(config.model_dump_json(), data_stamp(config))


def data_stamp(config: DataConfig) -> tuple[int, ...]:
    """Identity, size and time of a JSONL file, without reading it; () if there is none."""
    if config.path is None:
        return ()
    try:
        state = Path(config.path).stat()
    except OSError:
        return ()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@lru_cache(maxsize=2)
def _partition(config_json: str, _stamp: tuple[int, ...]) -> Partition:
    config = DataConfig.model_validate_json(config_json)
    return partition(load_dialogues(config, skip_bad=config.skip_bad), config)
