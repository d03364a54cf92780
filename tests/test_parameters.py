"""What training changes: the names without torch are the model's own, and counts follow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.checkpoint import read_vector, start_model
from fedattn.config import Architecture, ModelConfig
from fedattn.errors import ConfigError, ModelError
from fedattn.model import AttentionGenerator, trainable_names
from fedattn.parameters import lora_rank, parameter_shapes, trainable_count, trainable_shapes
from tests.conftest import SHAPE

FORMS = [
    "all",
    "bias_norm",
    "last_1",
    "last_2",
    "lora(1)",
    "lora(5)",
    "ffa_lora(3)",
    ("*.feed.*", "norm_*"),
]
SMALL = Architecture(**SHAPE)
DEEP = Architecture(**{**SHAPE, "encoder_layers": 2, "decoder_layers": 3, "d_model": 24})


@pytest.mark.parametrize("which", FORMS, ids=str)
def test_names_and_shapes_are_those_of_the_model_that_training_starts_from(which):
    model = start_model(ModelConfig(start="random", architecture=DEEP, trainable=which))
    own = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert list(parameter_shapes(DEEP, which).items()) == list(own.items())
    names = trainable_names(model, which)
    chosen = trainable_shapes(DEEP, which)
    assert list(chosen) == names == [name for name in own if name in chosen]
    assert trainable_count(DEEP, which) == len(read_vector(model, names))


def test_all_is_every_parameter_and_a_tied_one_once():
    assert trainable_shapes(DEEP, "all") == parameter_shapes(DEEP)
    assert "embedding.weight" in parameter_shapes(DEEP)
    assert "head.weight" not in parameter_shapes(DEEP)


def test_last_layers_are_those_next_to_the_output():
    names = set(trainable_shapes(DEEP, "last_1"))
    assert {"decoder.2.attention.query.weight", "norm_out.weight", "head.bias"} <= names
    assert not any(name.startswith(("decoder.1", "encoder", "embedding")) for name in names)
    assert names < set(trainable_shapes(DEEP, "last_2")) < set(trainable_shapes(DEEP, "last_3"))


@given(rank=st.integers(1, 16), layers=st.integers(1, 4), more=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_low_rank_factors_cost_rank_times_the_sides_of_every_linear_layer(rank, layers, more):
    shape = Architecture(**{**SHAPE, "encoder_layers": layers, "decoder_layers": more})
    sides = [
        sum(size)
        for name, size in parameter_shapes(shape).items()
        if len(size) == 2 and not name.endswith("bias.weight") and name != "embedding.weight"
    ]
    assert len(sides) == 6 * layers + 10 * more
    few = trainable_count(shape, "bias_norm")
    assert trainable_count(shape, f"lora({rank})") == few + rank * sum(sides)
    assert set(trainable_shapes(shape, "bias_norm")) < set(trainable_shapes(shape, f"lora({rank})"))


@given(st.lists(st.sampled_from(["*.feed.*", "norm_*", "*.bias", "decoder.?.cross.*", "*"]),
                min_size=2, max_size=5))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_patterns_choose_the_union_in_the_model_s_order_whatever_their_own(patterns):
    every = list(parameter_shapes(DEEP))
    chosen = list(trainable_shapes(DEEP, tuple(patterns)))
    alone = {name for each in patterns for name in trainable_shapes(DEEP, (each,))}
    assert chosen == [name for name in every if name in alone]
    assert chosen == list(trainable_shapes(DEEP, tuple(reversed(patterns))))


def test_every_form_is_a_list_of_patterns_too():
    last = ("decoder.2.*", "norm_out.*", "head.bias")
    assert trainable_shapes(DEEP, last) == trainable_shapes(DEEP, "last_1")
    assert trainable_shapes(DEEP, ("*",)) == trainable_shapes(DEEP, "all")
    dots = [name for name, size in parameter_shapes(DEEP).items() if math.prod(size) == size[0]]
    assert trainable_shapes(DEEP, (*dots, "*.bias.weight")) == trainable_shapes(DEEP, "bias_norm")


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("last_4", r"last_4: 4 decoder layers, the model has 3; use at most last_3"),
        ("lora(25)", r"rank 25 is above d_model, 24"),
        (("*.feed.*", "decoder.3.*"), r"pattern `decoder\.3\.\*` matches no parameter"),
        (("head.weight",), r"`embedding.weight`, which is the output layer's weight too"),
        (("Norm_*",), r"pattern `Norm_\*` matches no parameter"),
    ],
)
def test_what_the_model_has_not_is_refused_with_the_remedy(which, says):
    with pytest.raises(ConfigError, match=says):
        trainable_shapes(DEEP, which)
    with pytest.raises(ConfigError, match=says):
        trainable_names(AttentionGenerator(DEEP), which)


@pytest.mark.parametrize("digit", ["\u0663", "\u0b69", "\uff13"])
def test_a_rank_is_said_in_plain_digits(digit):
    """Each is a 3 to Python's `int`; two spellings of one model would have two hashes."""
    assert int(digit) == 3
    assert lora_rank("lora(3)") == 3
    assert lora_rank(f"lora({digit})") is None


def test_factors_that_a_model_was_not_given_are_missed():
    with pytest.raises(ModelError, match=r"lora\(2\): the model was not made for it"):
        trainable_names(AttentionGenerator(SMALL), "lora(2)")
    given_two = start_model(ModelConfig(start="random", architecture=SMALL, trainable="lora(2)"))
    with pytest.raises(ModelError, match=r"lora\(3\): the model was not made for it"):
        trainable_names(given_two, "lora(3)")
