"""What a start model is, without torch: equal bit for bit to what torch says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedattn.checkpoint import (
    load_model,
    model_sha256,
    read_vector,
    released_sha256,
    save_model,
    start_model,
)
from fedattn.config import Architecture, ModelConfig
from fedattn.errors import ModelError
from fedattn.model import AttentionGenerator, count_parameters, trainable_names
from fedattn.parameters import parameter_shapes, trainable_count, trainable_shapes
from fedattn.start import read_checkpoint, start_dimension, start_facts, vector_sha256
from tests.conftest import SHAPE

SHAPES = [
    {},
    {"encoder_layers": 3, "decoder_layers": 2, "heads": 4},
    {"encoder_layers": 2, "decoder_layers": 4, "d_model": 24, "vocab_size": 300},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_names_and_shapes_are_the_models_own_in_its_order(changes):
    shape = Architecture(**{**SHAPE, **changes})
    model = AttentionGenerator(shape)
    expected = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
    assert list(parameter_shapes(shape).items()) == expected
    assert trainable_count(shape, "all") == count_parameters(model)


@pytest.mark.parametrize("which", ["all", "bias_norm", "last_1", "lora(3)", ("norm_*", "*.feed.*")])
def test_the_dimension_is_what_training_changes(which):
    model = ModelConfig(start="public", trainable=which)
    torchs = start_model(model)
    assert start_dimension(model) == len(read_vector(torchs, trainable_names(torchs, which)))
    small = ModelConfig(start="random", architecture=Architecture(**SHAPE), trainable=which)
    drawn = start_model(small)
    assert start_dimension(small) == len(read_vector(drawn, trainable_names(drawn, which)))


def test_bias_norm_leaves_matrices_alone():
    chosen = set(trainable_shapes(Architecture(**SHAPE), "bias_norm"))
    assert "encoder.0.attention.bias.weight" in chosen
    assert "norm_out.weight" in chosen
    assert not chosen & {"embedding.weight", "encoder.0.feed.up.weight"}


def test_the_public_start_has_one_name(tmp_path):
    facts = start_facts(ModelConfig())
    model = start_model(ModelConfig())
    assert facts.sha256 == model_sha256(model)
    assert facts.architecture == model.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_file_has_one_name_whatever_its_precision(generator, tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    save_model(path, generator(3), dtype=dtype)
    loaded = load_model(path)
    assert start_facts(ModelConfig(start=str(path))).sha256 == model_sha256(loaded)
    expected = generator(3).state_dict()
    for name, value in read_checkpoint(path).weights.items():
        assert np.array_equal(value, expected[name].to(dtype).float().numpy())


def test_a_file_that_changed_has_another_name(generator, tmp_path):
    path = tmp_path / "model.safetensors"
    names = []
    for seed in (1, 2):
        save_model(path, generator(seed))
        names.append(start_facts(ModelConfig(start=str(path))).sha256)
    assert len(set(names)) == 2


def test_weights_that_are_no_numbers_are_refused(generator, tmp_path):
    model, path = generator(), tmp_path / "model.safetensors"
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    notes = {"format": "fedattn-model/1", "architecture": json.dumps(model.shape.model_dump())}
    weights["embedding.weight"][0, 0] = torch.nan
    save_file(weights, path, notes)
    with pytest.raises(ModelError, match="not finite"):
        read_checkpoint(path)
    whole = {name: torch.zeros(value.shape, dtype=torch.int32) for name, value in weights.items()}
    save_file(whole, path, notes)
    with pytest.raises(ModelError, match="not floating-point"):
        read_checkpoint(path)


def test_a_missing_start_or_a_random_one_has_no_facts(tmp_path):
    with pytest.raises(ModelError, match="no such checkpoint"):
        start_facts(ModelConfig(start=str(tmp_path / "none.safetensors")))
    random = ModelConfig(start="random", architecture=Architecture(**SHAPE))
    with pytest.raises(ModelError, match="random is no file"):
        start_facts(random)


def test_a_release_has_one_name_with_and_without_torch():
    vector = torch.randn(100)
    assert vector_sha256("ab" * 32, vector.numpy()) == released_sha256("ab" * 32, vector)
