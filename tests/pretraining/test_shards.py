"""Shards are sampled once and again only when what they were made from has changed."""

import io
import json

import h5py
import numpy as np
import pytest

from fedattn.errors import DataError
from fedattn.pretraining.character_lstm import NAMES
from fedattn.pretraining.recipe import SampledConfig
from fedattn.pretraining.sampler import END, WRITABLE
from fedattn.pretraining.shards import VOCABULARY, WEIGHTS, make_shards

CHARACTERS = {name: index + 1 for index, name in enumerate([*WRITABLE, END])}
CONFIG = SampledConfig(seeds=[5, 6], characters=600, streams=4, longest_turn=20)


@pytest.fixture(scope="module")
def package():
    """The files of a textgenrnn package with small random weights."""
    rng = np.random.default_rng(0)
    size, embedded, units = len(CHARACTERS) + 1, 4, 3
    shapes = [
        (size, embedded),
        *((embedded, 4 * units), (units, 4 * units), (8 * units,)),
        *((units, 4 * units), (units, 4 * units), (8 * units,)),
        *((embedded + 2 * units, 1), (embedded + 2 * units, size), (size,)),
    ]
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, shape in zip(NAMES, shapes, strict=True):
            file[name] = rng.normal(size=shape).astype(np.float32)
    return {WEIGHTS: buffer.getvalue(), VOCABULARY: json.dumps(CHARACTERS).encode()}


def sampled(package, folder, config=CONFIG):
    """The shards' bytes by seed, and which seeds were sampled for it."""
    told = []
    paths = make_shards(package, config, folder, told.append)
    return {seed: path.read_bytes() for seed, path in paths.items()}, [
        int(line.split()[2].rstrip(":")) for line in told
    ]


def test_a_shard_that_is_there_is_not_sampled_again(package, tmp_path):
    first, told = sampled(package, tmp_path)
    assert told == [5, 6]
    assert first[5] != first[6]
    assert sampled(package, tmp_path) == (first, [])


def test_a_lost_or_changed_shard_alone_is_sampled_again_to_the_same_bytes(package, tmp_path):
    first, _ = sampled(package, tmp_path)
    (tmp_path / "sampled-5.jsonl").write_bytes(first[5][:-40])
    assert sampled(package, tmp_path) == (first, [5])
    (tmp_path / "sampled-6.jsonl").unlink()
    assert sampled(package, tmp_path) == (first, [6])


def test_other_settings_are_other_shards(package, tmp_path):
    first, _ = sampled(package, tmp_path)
    hotter = CONFIG.model_copy(update={"hottest": 2.0})
    again, told = sampled(package, tmp_path, hotter)
    assert told == [5, 6]
    assert again != first


def test_a_shard_that_other_code_sampled_is_sampled_again(package, tmp_path):
    first, _ = sampled(package, tmp_path)
    path = tmp_path / "sampled-5.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "0" * 64}))
    assert sampled(package, tmp_path) == (first, [5])


def test_a_broken_weights_file_is_an_error_with_its_remedy(package, tmp_path):
    with pytest.raises(DataError, match=r"textgenrnn==2\.0\.0"):
        sampled({**package, WEIGHTS: b"no HDF5"}, tmp_path)
