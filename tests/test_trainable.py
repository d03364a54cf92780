"""What a run trains: real small federations whose frozen parameters stay, and what is refused."""

from __future__ import annotations

import pytest
import torch

import fedattn.device
from fedattn.audit import audit
from fedattn.checkpoint import load_model, read_vector, released_sha256, start_model
from fedattn.entries import Close, Open, Release
from fedattn.errors import ConfigError, RefusalError
from fedattn.flower.evaluation import Evaluation
from fedattn.flower.held_model import HeldModel
from fedattn.model import trainable_names
from fedattn.parameters import lora_rank, trainable_count
from fedattn.plan import make_plan
from fedattn.simulate import new_run_dir, simulate
from tests.federation import conversations, tiny, write
from tests.test_device import Federation
from tests.test_simulate import bodies

ONE_STEP = {"train": {"rounds": 2, "local_steps": 1}, "privacy": {"noise": "distributed"}}
RUNS = {
    "lora(2)": {},
    "ffa_lora(2)": ONE_STEP,
    "last_1": {},
    ("decoder.*.feed.*", "norm_*"): ONE_STEP,
}


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", conversations())


def config_of(data, which, **changes):
    base = tiny(data)
    architecture = base.model.architecture.model_dump() | {"decoder_layers": 2}
    model = {"architecture": architecture, "trainable": which}
    return tiny(data, model=model, **changes)


@pytest.mark.parametrize("which", RUNS, ids=str)
def test_a_run_changes_what_it_trains_alone_and_its_audit_passes(data, tmp_path, which):
    config = config_of(data, which, **RUNS[which])
    result = simulate(config, new_run_dir(config, tmp_path / "run"))
    assert result.exit_code == 0
    checked = audit(
        result.run_dir,
        server_key=result.server_fingerprint,
        roster=result.run_dir / "roster.txt",
        authority=result.run_dir / "authority" / "authority.pem",
    )
    assert checked.ok, [finding for finding in checked.findings if not finding.ok]
    shape = config.model.architecture
    opened = bodies(result.run_dir, Open)[0]
    assert opened.dimension == trainable_count(shape, which) < trainable_count(shape, "all")
    assert len(bodies(result.run_dir, Release)) == 2

    first = start_model(config.model.model_copy(update={"trainable": "all"}))
    last = load_model(result.run_dir / "model.safetensors")
    rank = lora_rank(which)
    names = set(trainable_names(first, "bias_norm" if rank else which))
    for name, value in first.named_parameters():
        change = last.get_parameter(name) - value
        if name in names:
            assert change.any(), name
        elif rank and name != "embedding.weight":
            assert 0 < torch.linalg.matrix_rank(change, atol=1e-5) <= rank, name
        else:
            assert torch.equal(last.get_parameter(name), value), name
    if not rank:  # (the factors are not in the file: they are merged)
        vector = read_vector(last, trainable_names(last, which))
        closed = bodies(result.run_dir, Close)[0]
        assert released_sha256(opened.start_sha256, vector) == closed.model_sha256

    evaluation = Evaluation(config, last.eval())
    bpb = evaluation.quality(evaluation.test).bpb
    assert bpb == pytest.approx(result.report.quality.bpb_after, abs=1e-6)
    assert bpb != result.report.quality.bpb_before


def test_a_resumed_run_with_factors_goes_on_from_the_last_release(data, tmp_path, monkeypatch):
    """Round 1 is released; the server stops while it makes round 2's model."""
    config = config_of(data, "lora(2)", train={"rounds": 3, "local_steps": 1})
    held = []

    class StoppedError(Exception):
        pass

    def stop(self, *arguments):
        held.append(self.vector)
        if len(held) == 2:
            raise StoppedError
        return following(self, *arguments)

    following = HeldModel.next
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    monkeypatch.setattr(HeldModel, "next", stop)
    with pytest.raises(StoppedError):
        simulate(config, run_dir)
    monkeypatch.undo()
    seen = []

    def watched(self, standing):
        curve = resume(self, standing)
        seen.append(self.vector)
        written = read_vector(self.model, trainable_names(self.model, "lora(2)"))
        assert torch.equal(written, self.vector)
        return curve

    resume = HeldModel.resume
    monkeypatch.setattr(HeldModel, "resume", watched)
    result = simulate(config, run_dir, is_resumed=True)
    assert torch.equal(seen[0], held[1])
    assert result.report.totals.rounds_released == 2  # (the round that was stopped stays spent)
    assert audit(run_dir, server_key=result.server_fingerprint).ok
    load_model(run_dir / "model.safetensors")


@pytest.mark.parametrize(
    ("which", "says"),
    [
        (["encoder.*", "decoder.9.*"], r"pattern `decoder\.9\.\*` matches no parameter"),
        ("last_3", "3 decoder layers, the model has 2"),
        ("lora(9)", "rank 9 is above d_model, 8"),
    ],
)
def test_what_the_model_has_not_is_refused_before_anyone_is_contacted(data, tmp_path, which, says):
    config = config_of(data, which)
    with pytest.raises(ConfigError, match=says):
        make_plan(config, is_probed=False)
    run_dir = new_run_dir(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=says):
        simulate(config, run_dir)
    assert not (run_dir / "ledger.jsonl").exists()


def test_a_plan_s_dimension_and_bytes_are_those_of_what_is_trained(data):
    plans = {
        which: make_plan(config_of(data, which), is_probed=False).sizes
        for which in ("all", "last_1", "lora(1)", "bias_norm")
    }
    sizes = [plans[which].dimension for which in plans]
    assert sizes == sorted(sizes, reverse=True)
    for which, sized in plans.items():
        assert sized.dimension == trainable_count(config_of(data, which).model.architecture, which)
        assert sized.download_bytes == pytest.approx(4 * sized.dimension, rel=0.1)


def test_a_device_whose_start_has_fewer_layers_refuses_the_dimension(data, tmp_path, monkeypatch):
    """The server's model has two decoder layers, this device's one."""
    federation = Federation(tmp_path / "devices", config_of(data, "last_2"))
    asked = federation.instruction()
    assert federation.device.accept(asked) == 1
    small = tiny(data).model.architecture
    monkeypatch.setattr(
        fedattn.device, "start_dimension", lambda model: trainable_count(small, model.trainable)
    )
    with pytest.raises(RefusalError, match="dimension: trains what the model installed here"):
        federation.device.accept(federation.instruction(2))
