"""A checkpoint comes back as it was, says what does not fit, and has one name everywhere."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedattn.checkpoint import (
    FORMAT,
    load_model,
    model_sha256,
    read_vector,
    released_sha256,
    save_model,
    start_model,
    write_vector,
)
from fedattn.config import Architecture, ModelConfig
from fedattn.errors import ModelError
from fedattn.model import trainable_names


def test_weights_survive_the_disk_bit_for_bit_and_stay_tied(generator, tmp_path):
    model = generator()
    save_model(tmp_path / "m.safetensors", model, notes={"trained on": "plays"})
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.shape == model.shape
    assert loaded.head.weight is loaded.embedding.weight
    for (name, value), (other, twin) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, twin)
    assert model_sha256(loaded) == model_sha256(model)


def test_a_tied_weight_is_written_once_and_notes_are_kept(generator, tmp_path):
    save_model(tmp_path / "m.safetensors", generator(), notes={"trained on": "plays"})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert "head.weight" not in set(file.keys())
        metadata = file.metadata()
    assert metadata["format"] == FORMAT
    assert metadata["trained on"] == "plays"


def test_half_precision_is_loaded_as_float32_and_named_by_its_float32_values(generator, tmp_path):
    model = generator()
    save_model(tmp_path / "half", model, dtype=torch.float16)
    loaded = load_model(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    assert model_sha256(loaded) == model_sha256(model)
    save_model(tmp_path / "full", loaded)
    assert model_sha256(load_model(tmp_path / "full")) == model_sha256(loaded)


def rewrite(path, change):
    """The checkpoint at `path` with weights and metadata as `change` leaves them."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    weights = load_file(path)
    change(weights, metadata)
    save_file(weights, path, metadata)


def nan(weights, _):
    weights["head.bias"][0] = torch.nan


def inf(weights, _):
    weights["embedding.weight"][3, 3] = -torch.inf


def reshaped(weights, _):
    weights["head.bias"] = weights["head.bias"][1:].clone()


def lost(weights, _):
    del weights["norm_out.bias"]


def added(weights, _):
    weights["extra"] = torch.zeros(1)


def other_format(_, metadata):
    metadata["format"] = "fedattn-model/2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "weights are not finite"),
        (inf, "weights are not finite"),
        (reshaped, "do not fit the architecture"),
        (lost, "do not fit the architecture"),
        (added, "do not fit the architecture"),
        (other_format, "not a fedattn-model/1 checkpoint"),
    ],
)
def test_what_does_not_fit_is_named(generator, tmp_path, change, message):
    save_model(tmp_path / "m", generator())
    rewrite(tmp_path / "m", change)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m")


def no_architecture(_, metadata):
    del metadata["architecture"]


def broken_architecture(_, metadata):
    metadata["architecture"] = "{"


def impossible_architecture(_, metadata):
    shape = json.loads(metadata["architecture"])
    metadata["architecture"] = json.dumps({**shape, "heads": 3})


def endless_architecture(_, metadata):
    shape = json.loads(metadata["architecture"])
    metadata["architecture"] = json.dumps({**shape, "decoder_layers": 10**12})  # to be listed


@pytest.mark.parametrize(
    "change",
    [no_architecture, broken_architecture, impossible_architecture, endless_architecture],
)
def test_bad_metadata_is_a_model_error(generator, tmp_path, change):
    save_model(tmp_path / "m", generator())
    rewrite(tmp_path / "m", change)
    with pytest.raises(ModelError):
        load_model(tmp_path / "m")


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    with pytest.raises(ModelError, match="no such checkpoint; `make pretrain`"):
        load_model(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_model(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ModelError, match="not a fedattn-model/1 checkpoint"):
        load_model(tmp_path / "foreign")


def test_random_start_depends_on_the_seed_alone_and_leaves_torch_alone():
    config = ModelConfig(start="random", architecture=Architecture(vocab_size=257, d_model=8))
    torch.manual_seed(1)
    first, state = model_sha256(start_model(config)), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model_sha256(start_model(config, seed=0)) == first
    assert model_sha256(start_model(config, seed=1)) != first


def test_a_file_is_a_start(generator, tmp_path):
    save_model(tmp_path / "m.safetensors", generator())
    started = start_model(ModelConfig(start=str(tmp_path / "m.safetensors")))
    assert model_sha256(started) == model_sha256(generator())


def test_every_changed_weight_changes_the_name(generator):
    model = generator()
    names = {model_sha256(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1.0
        names.add(model_sha256(model))
    assert len(names) == 1 + len(list(model.parameters()))


def test_a_released_name_binds_start_and_vector():
    a, b = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
    vector = torch.tensor([1.0, 2.0])
    twin = hashlib.sha256(FORMAT.encode() + bytes.fromhex(a) + vector.numpy().tobytes())
    assert released_sha256(a, vector) == twin.hexdigest()
    others = {
        released_sha256(b, vector),
        released_sha256(a, vector.flip(0)),
        released_sha256(a, vector[:1]),
    }
    assert len(others | {twin.hexdigest()}) == 4


@pytest.mark.parametrize("which", ["all", "bias_norm"])
def test_a_vector_read_is_the_vector_written(generator, which):
    model = generator()
    names = trainable_names(model, which)
    others = {n: p.clone() for n, p in model.named_parameters() if n not in names}
    vector = torch.randn_like(read_vector(model, names))
    write_vector(model, names, vector)
    assert torch.equal(read_vector(model, names), vector)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in others.items())
    assert model.head.weight is model.embedding.weight


def test_a_vector_in_the_models_order_starts_with_its_first_parameter(generator):
    model = generator()
    vector = read_vector(model, trainable_names(model, "all"))
    start = 0
    for parameter in model.parameters():
        piece = vector[start : start + parameter.numel()]
        assert torch.equal(piece, parameter.detach().flatten())
        start += parameter.numel()
    assert start == len(vector)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_wrong_length_is_refused_and_nothing_is_written(generator, change):
    model = generator()
    names = trainable_names(model, "all")
    size = len(read_vector(model, names))
    with pytest.raises(ModelError, match=rf"shape \({size + change},\), the model needs"):
        write_vector(model, names, torch.zeros(size + change))
    assert model_sha256(model) == model_sha256(generator())
