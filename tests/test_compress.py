"""Compressed models: which weights go, how far the others move, and what the table says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import fedattn
from fedattn import cli
from fedattn.checkpoint import save_model
from fedattn.compress import compress, tokens_per_s, validation_pairs
from fedattn.compressed import (
    IntegerLinear,
    is_compressed,
    is_matrix,
    load_compressed,
    prune,
    quantised,
    to_bytes,
)
from fedattn.errors import ConfigError, ModelError, RunError
from fedattn.found_model import find_model
from fedattn.generate import OPENERS, bits_per_byte
from fedattn.released import read_released


def matrices(model):
    return {name: p.detach() for name, p in model.named_parameters() if is_matrix(name, p.dim())}


def saved(model, path, *, is_int8):
    path.write_bytes(to_bytes(model, is_int8=is_int8))
    return path


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_pruning_takes_the_smallest_weights_of_all_matrices_together(generator, share):
    model = generator()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prune(model, share)
    sizes, kept, gone = [], [], []
    for name, after in model.named_parameters():
        if not is_matrix(name, after.dim()):
            assert torch.equal(after, before[name])
            continue
        stays = after != 0
        assert torch.equal(after[stays], before[name][stays])
        sizes.append(after.numel())
        kept += before[name][stays].abs().tolist()
        gone += before[name][~stays].abs().tolist()
    assert len(gone) == round(share * sum(sizes))
    assert max(gone, default=0.0) <= min(kept)
    assert model.head.weight is model.embedding.weight


rows = st.lists(st.floats(-1e3, 1e3, width=32), min_size=5, max_size=5)


@given(st.lists(rows, min_size=1, max_size=4))
def test_a_rounded_weight_is_off_by_half_a_scale_and_zero_stays_zero(values):
    weight = torch.tensor(values)
    integers, scales = quantised(weight)
    back = integers.float() * scales[:, None]
    assert ((back - weight).abs() <= scales[:, None] * 0.5001).all()
    assert (back[weight == 0] == 0).all()
    assert torch.equal(scales, (weight.abs().amax(1) / 127).clamp(min=2**-126))
    # rounding again changes nothing: a loaded model can be computed with as it was stored
    assert torch.equal(quantised(back)[0], integers)


def test_a_linear_layer_in_integers_is_the_slow_sum_over_rounded_numbers():
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40).requires_grad_(False), torch.randn(2, 3, 24)
    made, exact = IntegerLinear(linear)(x), linear(x)
    weight, scales = quantised(linear.weight)
    assert made.shape == exact.shape == (2, 3, 40)
    for b in range(2):
        for t in range(3):
            step = float(x[b, t].abs().max()) / 127
            ints = [round(float(value) / step) for value in x[b, t]]
            for o in range(0, 40, 7):
                total = sum(i * int(w) for i, w in zip(ints, weight[o], strict=True))
                slow = total * step * float(scales[o]) + float(linear.bias[o])
                assert float(made[b, t, o]) == pytest.approx(slow, abs=0.02)
    assert float((made - exact).abs().max()) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_without_integers_the_weights_come_back_exactly(generator, tmp_path, share):
    for model in (generator(), generator().half().float()):
        prune(model, share)
        path = saved(model, tmp_path / "small.safetensors", is_int8=False)
        assert is_compressed(path)
        back = load_compressed(path)
        for name, weight in model.state_dict().items():
            assert torch.equal(back.state_dict()[name], weight), name
        assert back.head.weight is back.embedding.weight


def test_integers_come_back_within_half_a_scale(generator, tmp_path):
    model = generator()
    back = load_compressed(saved(model, tmp_path / "small.safetensors", is_int8=True))
    for name, weight in matrices(model).items():
        scales = weight.abs().amax(1, keepdim=True) / 127
        off = (matrices(back)[name] - weight).abs()
        assert (off <= 0.5001 * scales).all()
        assert off.any()


def test_zeros_cost_a_bit_and_integers_a_byte(generator, tmp_path):
    model = generator(vocab_size=2000)
    count = sum(each.numel() for each in matrices(model).values())

    def size(share, is_int8):
        pruned = generator(vocab_size=2000)
        prune(pruned, share)
        return len(to_bytes(pruned, is_int8=is_int8))

    assert size(0.0, False) - size(0.5, False) == pytest.approx(0.5 * 4 * count, rel=0.01)
    assert size(0.0, True) < (1 + 1 / 8) * count + 4 * 60_000
    assert size(0.5, True) < size(0.0, True) - 0.45 * count


def test_large_layers_compute_in_integers_and_small_ones_do_not(generator, tmp_path):
    small = load_compressed(saved(generator(), tmp_path / "a", is_int8=True))
    assert not any(isinstance(each, IntegerLinear) for each in small.modules())
    wide = generator(vocab_size=8200, d_model=64)
    back = load_compressed(saved(wide, tmp_path / "b", is_int8=True)).eval()
    assert isinstance(back.head, IntegerLinear)
    assert [each for each in back.modules() if isinstance(each, IntegerLinear)] == [back.head]
    context, tokens = torch.tensor([[8203, 5, 6]]), torch.tensor([[8201, 7, 8]])
    with torch.no_grad():
        off = (back(context, tokens) - wide(context, tokens)).abs().max()
    assert 0 < off < 0.1


def test_a_layer_without_a_bias_computes_in_integers_too(generator, tmp_path):
    wide = generator(d_model=768)  # queries and keys have LARGE weights, and keys no bias
    back = load_compressed(saved(wide, tmp_path / "wide", is_int8=True)).eval()
    key = back.decoder[0].cross.key
    assert isinstance(key, IntegerLinear)
    assert key.bias is None
    context, tokens = torch.tensor([[260, 5, 6]]), torch.tensor([[258, 7, 8]])
    with torch.no_grad():
        off = (back(context, tokens) - wide(context, tokens)).abs().max()
    assert 0 < off < 0.1


E = "embedding.weight."


def damaged(path, change):
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def endless(metadata):
    """Layers whose names alone would fill the memory."""
    return json.dumps({**json.loads(metadata["architecture"]), "encoder_layers": 10**12})


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: t.pop("head.bias"),
        lambda t, m: t.update({"head.bias": t["head.bias"][:-1].clone()}),
        lambda t, m: t.update({"head.bias": t["head.bias"].half()}),
        lambda t, m: t.pop(E + "scales"),
        lambda t, m: t.update({E + "scales": torch.ones(3)}),
        lambda t, m: t.update({E + "kept": t[E + "kept"][1:].clone()}),
        lambda t, m: t.update({E + "values": t[E + "values"][1:].clone()}),
        lambda t, m: t.update({E + "values": t[E + "values"].float()}),
        lambda t, m: m.update(weights="int4"),
        lambda t, m: m.update(architecture="{}}"),
        lambda t, m: m.pop("architecture"),
        lambda t, m: m.update(architecture=endless(m)),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_remedy(generator, tmp_path, change):
    path = saved(generator(), tmp_path / "small.safetensors", is_int8=True)
    load_compressed(path)
    damaged(path, change)
    with pytest.raises(ModelError, match="compress the model again"):
        load_compressed(path)


def test_weights_that_are_not_finite_are_refused(generator, tmp_path):
    path = saved(generator(), tmp_path / "small.safetensors", is_int8=True)
    damaged(path, lambda t, m: t["head.bias"].fill_(math.nan))
    with pytest.raises(ModelError, match="not finite"):
        load_compressed(path)


@pytest.fixture(scope="module")
def compared(finished_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("compressed") / "small"
    found = find_model(finished_run)
    return out, compress(found, out, share=0.3, is_int8=True, examples=None), found


def test_a_compressed_run_loads_and_is_measured_as_it_is(compared):
    out, made, found = compared
    small = fedattn.load(out)
    assert small.reply(["hi"], max_tokens=4).ids
    pairs = validation_pairs(found, None)
    assert made.examples == len(pairs) == 5
    assert made.before.bpb == bits_per_byte(found.model, pairs, small.tokenizer).bpb
    assert made.after.bpb == bits_per_byte(small.model, pairs, small.tokenizer).bpb
    assert made.after.bpb != made.before.bpb
    assert made.after.file_bytes == (out / "model.safetensors").stat().st_size
    assert made.before.file_bytes == found.file.stat().st_size
    assert made.before.tokens_per_s > 0
    assert made.after.tokens_per_s > 0


def test_speed_is_of_the_same_tokens_whoever_would_end_a_reply_early(generator, tmp_path):
    generators, steps = [], []
    for number, pull in enumerate((-100.0, 100.0)):  # towards <eos>
        model, counted = generator(), []
        with torch.no_grad():
            model.head.bias[model.shape.vocab_size + 2] = pull
        save_model(tmp_path / f"{number}.safetensors", model)
        generators.append(fedattn.load(tmp_path / f"{number}.safetensors"))
        generators[-1].model.norm_out.register_forward_hook(
            lambda *_, counted=counted: counted.append(1)
        )
        steps.append(counted)
    assert [len(each.reply(["hi"]).ids) for each in generators] == [40, 1]
    steps[1].clear()
    assert min(tokens_per_s(generators)) > 0
    assert len(steps[1]) == 3 * 40 * len(OPENERS)


def test_a_compressed_run_keeps_its_epsilons_and_says_what_was_done(compared):
    out, _, found = compared
    released = read_released(out)
    assert released.notes == list(found.notes)
    assert released.privacy.claims == found.report.claims
    assert released.changes[0].startswith("pruned: the 30% smallest")
    assert "8-bit integers" in released.changes[1]
    card = (out / "README.md").read_text()
    assert "costs no privacy" in card
    assert "as measured before the changes above" in card
    # the pruning is in the file, not only in the words
    weights = torch.cat([each.flatten() for each in matrices(fedattn.load(out).model).values()])
    assert float((weights == 0).float().mean()) >= 0.3


def test_a_small_share_is_named_as_it_is_and_a_file_that_grew_is_said(finished_run, tmp_path):
    arguments = ["compress", str(finished_run), "--prune", "0.001", "--examples", "0", "--out"]
    done = CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "a")])
    assert done.exit_code == 0, done.exception
    assert read_released(tmp_path / "a").changes[0].startswith("pruned: the 0.1% smallest")
    assert "the file did not get smaller" in done.stderr
    done = CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "b"), "--int8"])
    assert "the file did not get smaller" not in done.stderr


def test_what_cannot_be_done_is_refused(finished_run, compared, tmp_path):
    found, out = find_model(finished_run), tmp_path / "out"
    with pytest.raises(ConfigError, match="nothing to do"):
        compress(found, out, share=0.0, is_int8=False, examples=0)
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="--prune"):
            compress(found, out, share=share, is_int8=True, examples=0)
    with pytest.raises(RunError, match="is compressed already"):
        compress(find_model(compared[0]), out, share=0.5, is_int8=False, examples=0)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(RunError, match="exists and is not overwritten"):
        compress(found, out, share=0.5, is_int8=False, examples=0)


def test_the_command_prints_a_table_or_one_json_object(finished_run, tmp_path):
    arguments = ["compress", str(finished_run), "--int8", "--out"]
    done = CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "a"), "--examples", "3"])
    assert done.exit_code == 0, done.exception
    for shown in ("file bytes", "tokens per second", "3 validation", "costs no privacy"):
        assert shown in done.stdout
    assert "NOT PRIVATE" in done.stderr
    done = CliRunner().invoke(
        cli.app, [*arguments, str(tmp_path / "b"), "--examples", "0", "--json"]
    )
    told = json.loads(done.stdout)
    assert told["after"]["bpb"] is None
    assert told["threads"] >= 1
