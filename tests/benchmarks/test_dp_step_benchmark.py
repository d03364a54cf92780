"""The private step's benchmark: every kind of step runs, and trains what it is named for."""

import pytest

from benchmarks.dp_step import KINDS, Size

TINY = {"vocabulary": 300, "batch": 2, "context": 8, "reply": 6, "d_model": 32}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # of Opacus's
@pytest.mark.parametrize("trainable", ["all", "bias_norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_step(kind, trainable):
    KINDS[kind](Size("tiny", **TINY, trainable=trainable))()


@pytest.mark.parametrize("is_shared", [True, False])
def test_all_trains_every_parameter_and_a_subset_its_own_alone(is_shared):
    def trained(trainable):
        model = Size("tiny", **TINY, trainable=trainable).model(is_shared=is_shared)
        return {name for name, each in model.named_parameters() if each.requires_grad}, model

    names, model = trained("all")
    assert names == {name for name, _ in model.named_parameters()}
    names, _ = trained("bias_norm")
    assert "head.bias" in names
    assert not any(name.startswith(("head.weight", "embedding")) for name in names)
