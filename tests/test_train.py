"""Local training: public steps, honoured rates, and nothing that one record can do to others."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import fedattn.augment
import fedattn.train
from fedattn.batches import IGNORED, collate, pair
from fedattn.checkpoint import read_vector, save_model
from fedattn.clipping import CLIP_MARGIN, PrivateOptimizer
from fedattn.errors import FedattnError
from fedattn.model import trainable_names
from fedattn.randomness import Randomness
from fedattn.train import noise_only, poisson_sample, record_losses, train_locally

NO_NOISE = 1e-28  # the smallest that a config takes: sums come out as they are
PLAIN = {
    "privacy__unit": "none",
    "privacy__noise": "none",
    "privacy__epsilon_budget": None,
    "privacy__sampling_rate": 1.0,
}


@pytest.fixture
def spied_sums(monkeypatch):
    """The clipped sum (d,) before noise of every finished step, in order."""
    sums, finish = [], PrivateOptimizer.finish_step

    def spy(self):
        parts = [p.summed_grad for p in self.params]
        size = sum(p.numel() for p in self.params)
        empty = parts[0] is None
        sums.append(torch.zeros(size) if empty else torch.cat([p.flatten() for p in parts]))
        finish(self)

    monkeypatch.setattr(PrivateOptimizer, "finish_step", spy)
    return sums


@pytest.fixture
def run(generator, tokenizer, make_config):
    """Train a fresh model on `records`; the change (d,)."""

    def once(records, seed=1, model=None, **changes):
        model = generator() if model is None else model
        config = make_config(**changes)
        return train_locally(model, tokenizer, records, config, Randomness.seeded(seed)).delta

    return once


def close(a, b, rel=1e-5):
    return (a - b).norm() <= rel * b.norm()


@pytest.mark.parametrize("which", ["all", "bias_norm"])
@pytest.mark.parametrize("plain", [False, True])
def test_the_model_is_left_as_it_was(generator, run, make_records, which, plain):
    model = generator()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        delta = run(
            make_records(5), model=model, model__trainable=which, **(PLAIN if plain else {})
        )
        assert delta.abs().max() > 0
        assert delta.dtype == torch.float32
        assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert model.head.weight is model.embedding.weight
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_a_trained_model_is_still_tied_after_saving_and_loading(
    generator, run, make_records, tmp_path
):
    from fedattn.checkpoint import load_model, write_vector

    model = generator()
    names = trainable_names(model, "all")
    vector = read_vector(model, names) + run(make_records(5), model=model)
    write_vector(model, names, vector)
    assert model.head.weight is model.embedding.weight
    save_model(tmp_path / "m", model)
    loaded = load_model(tmp_path / "m")
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(read_vector(loaded, names), vector)


@pytest.mark.parametrize("which", ["all", "bias_norm"])
def test_only_trainable_parameters_move(generator, run, make_records, which):
    model = generator()
    delta = run(make_records(4), model=model, model__trainable=which)
    assert delta.shape == read_vector(model, trainable_names(model, which)).shape


def test_a_seeded_run_is_reproducible_whatever_torch_is_seeded_with(run, make_records):
    torch.manual_seed(1)
    first = run(make_records(9), 5)
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(run(make_records(9), 5), first)
    assert not torch.equal(run(make_records(9), 6), first)


def test_unseeded_runs_differ(generator, tokenizer, make_config):
    made = [
        noise_only(generator(), tokenizer, make_config(), Randomness.from_os()).delta
        for _ in range(2)
    ]
    assert not torch.equal(*made)


@pytest.mark.parametrize("steps", [1, 4])
def test_no_record_at_all_gives_noise_of_the_stated_deviation(run, steps):
    delta = run(
        [], train__local_steps=steps, privacy__noise_multiplier=2.0, privacy__clip_norm=0.25,
        train__expected_batch_size=5, train__learning_rate=3.0,
    ).double()  # fmt: skip
    std = 3.0 * 2.0 * 0.25 / 5 * math.sqrt(steps)
    n = delta.numel()
    assert abs(float((delta / std).square().sum()) - n) < 5 * math.sqrt(2 * n)
    assert abs(float(delta.mean())) < 5 * std / math.sqrt(n)


def test_noise_only_is_training_on_no_record(generator, tokenizer, make_config, run):
    result = noise_only(generator(), tokenizer, make_config(), Randomness.seeded(1))
    assert torch.equal(result.delta, run([]))


@pytest.mark.parametrize("count", [0, 1, 30])
@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0])
def test_the_number_of_steps_is_public(run, spied_sums, make_records, count, rate):
    run(make_records(count), train__local_steps=5, privacy__sampling_rate=rate)
    assert len(spied_sums) == 5


def test_without_noise_no_record_changes_nothing(run):
    assert not run([], **PLAIN).any()


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 0.97])
def test_the_sampling_rate_is_honoured(rate):
    randomness, n, draws = Randomness.seeded(3), 500, 200
    total = sum(len(poisson_sample(range(n), rate, randomness)) for _ in range(draws))
    assert abs(total - n * draws * rate) < 5 * math.sqrt(n * draws * rate * (1 - rate))


def test_records_are_sampled_independently_of_each_other_and_of_earlier_steps():
    randomness, rate, draws = Randomness.seeded(4), 0.3, 4000
    taken = np.zeros((draws, 4))
    for step in range(draws):
        taken[step, poisson_sample(range(4), rate, randomness)] = 1
    bound = 5 / math.sqrt(draws)
    assert (np.abs(taken.mean(0) - rate) < bound * math.sqrt(rate * (1 - rate))).all()
    between = np.corrcoef(taken.T)
    assert np.abs(between - np.eye(4)).max() < bound
    for column in taken.T:
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < bound
    sizes = taken.sum(1)  # binomial, so the batch size itself varies
    assert abs(sizes.var() - 4 * rate * (1 - rate)) < 5 * 1.2 / math.sqrt(draws)


@pytest.mark.parametrize("rate", [1e-280, 2.0**-64, 0.5, math.nextafter(1, 0), 1.0])
def test_every_rate_samples_without_overflow(rate):
    sampled = poisson_sample(range(100), rate, Randomness.seeded(1))
    assert len(sampled) in {0.5: range(25, 76), 1e-280: [0], 2.0**-64: [0]}.get(rate, [100])
    assert poisson_sample([], rate, Randomness.seeded(1)) == []


def test_training_samples_at_the_configured_rate(run, make_records, monkeypatch):
    rows, true_losses = [], record_losses

    def count(model, batch):
        rows.append(len(batch))
        return true_losses(model, batch)

    monkeypatch.setattr(fedattn.train, "record_losses", count)
    run(make_records(60), privacy__sampling_rate=0.2, train__local_steps=20)
    assert abs(sum(rows) - 240) < 5 * math.sqrt(1200 * 0.2 * 0.8)
    assert len(set(rows)) > 1


def test_a_step_over_an_empty_batch_is_kept_and_not_drawn_anew(run, spied_sums, make_records):
    run(make_records(2), privacy__sampling_rate=0.3, train__local_steps=200)
    empty = sum(not total.any() for total in spied_sums)
    assert len(spied_sums) == 200
    assert abs(empty - 200 * 0.49) < 5 * math.sqrt(200 * 0.49 * 0.51)


def test_each_reply_of_a_record_is_drawn_equally_often(make_records, run, monkeypatch):
    drawn, true_pair = [], pair

    def spy(record, reply, *rest):
        drawn.append(reply)
        return true_pair(record, reply, *rest)

    monkeypatch.setattr(fedattn.augment, "pair", spy)
    monkeypatch.setattr(fedattn.train, "record_losses", lambda *_: 1 / 0)
    run(make_records(300, replies=3), privacy__sampling_rate=1.0, train__local_steps=4)
    counts = np.bincount(drawn, minlength=4)[1:]
    assert counts.sum() == 1200
    assert (np.abs(counts - 400) < 5 * math.sqrt(1200 * 2 / 9)).all()


def test_a_private_step_is_that_of_the_slow_twin(generator, tokenizer, run, make_records):
    """One at a time in float64: clip, sum, divide by the public number, move."""
    model, records = generator(), make_records(6)
    exact = copy.deepcopy(model).double()
    for _ in range(2):
        total = 0
        for record in records:
            example = pair(record, 1, tokenizer, model.shape.context_tokens)
            batch = collate([example], tokenizer, model.shape.reply_tokens)
            logs = exact(batch.context, batch.tokens)[0].log_softmax(-1)
            loss = -logs[torch.arange(logs.shape[0]), batch.targets[0]].mean()
            gradients = torch.autograd.grad(loss, list(exact.parameters()))
            flat = torch.cat([g.flatten() for g in gradients])
            total = total + flat * min(1, 0.5 * (1 - CLIP_MARGIN) / float(flat.norm()))
        start = 0
        with torch.no_grad():
            for parameter in exact.parameters():
                piece = total[start : start + parameter.numel()].view_as(parameter)
                parameter -= 2.0 * piece / 4
                start += parameter.numel()
    names = trainable_names(model, "all")
    moved = torch.cat([dict(exact.named_parameters())[n].detach().flatten() for n in names])
    expected = moved - read_vector(model, names).double()
    delta = run(
        records, privacy__sampling_rate=1.0, privacy__noise_multiplier=NO_NOISE,
        train__learning_rate=2.0,
    )  # fmt: skip
    assert close(delta.double(), expected, 1e-4)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("plain", [False, True])
def test_the_physical_batch_size_does_not_change_the_step(run, make_records, size, plain):
    changes = {"privacy__sampling_rate": 1.0, **(PLAIN if plain else {})}
    whole = run(make_records(11), **changes)
    assert close(run(make_records(11), train__max_physical_batch=size, **changes), whole)


def test_the_order_of_records_matters_only_to_who_is_sampled(run, make_records):
    """At rate 1 nobody is sampled and records with one reply have nothing to draw."""
    records = make_records(8)
    ahead = run(records, privacy__sampling_rate=1.0)
    back = run(records[::-1], privacy__sampling_rate=1.0)
    assert close(back, ahead)


@pytest.mark.parametrize("size", [2, 64])
def test_one_record_changes_each_sum_by_at_most_the_clip_norm(run, spied_sums, make_records, size):
    """One step from the same weights, with and without each record in turn."""
    records = make_records(6, seed=2)
    changes = {
        "privacy__sampling_rate": 1.0,
        "train__local_steps": 1,
        "train__max_physical_batch": size,
        "privacy__clip_norm": 0.1,
    }
    run(records, **changes)
    for index in range(len(records)):
        run(records[:index] + records[index + 1 :], **changes)
    whole, *others = (s.double() for s in spied_sums)
    assert whole.norm() > 0.1
    for other in others:
        assert 0.05 < (whole - other).norm() <= 0.1


def poisoned(records, token=200):
    """Records in which the second alone holds `token`, in its context."""
    from dataclasses import replace

    clean = [
        replace(r, turns=tuple(tuple(t % 200 for t in turn) for turn in r.turns)) for r in records
    ]
    clean[1] = replace(clean[1], turns=((token, *clean[1].turns[0][1:]), clean[1].turns[1]))
    return clean


def raises(losses, _hit):
    raise RuntimeError("shapes do not match")


def is_nan(losses, hit):
    return losses * torch.where(hit, math.nan, 1.0)


def is_infinite(losses, hit):
    return losses * torch.where(hit, math.inf, 1.0)


def has_nan_gradient(losses, hit):
    # row by row: the backward pass of torch.where would put NaN in every row
    return torch.stack([(x * 0).sqrt() if h else x for x, h in zip(losses, hit, strict=True)])


@pytest.mark.parametrize("failure", [raises, is_nan, is_infinite, has_nan_gradient])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_record_that_fails_leaves_what_the_others_contribute(
    run, spied_sums, make_records, monkeypatch, failure, size
):
    records, true_losses = poisoned(make_records(7)), record_losses
    changes = {
        "privacy__sampling_rate": 1.0,
        "train__max_physical_batch": size,
        "train__local_steps": 1,
    }
    without = run(records[:1] + records[2:], **changes)

    def fails(model, batch):
        losses, hit = true_losses(model, batch), (batch.context == 200).any(1)
        return failure(losses, hit) if hit.any() else losses

    monkeypatch.setattr(fedattn.train, "record_losses", fails)
    failed = run(records, **changes)
    assert (spied_sums[1] - spied_sums[0]).norm() < 1e-5 * spied_sums[0].norm()
    assert close(failed, without)


def test_a_failing_record_does_not_spoil_the_next_step(run, make_records, monkeypatch):
    records, true_losses = poisoned(make_records(5)), record_losses
    changes = {"privacy__sampling_rate": 1.0, "train__local_steps": 3}
    without = run(records[:1] + records[2:], **changes)

    def fails(model, batch):
        losses = true_losses(model, batch)
        if (batch.context == 200).any():
            raise MemoryError
        return losses

    monkeypatch.setattr(fedattn.train, "record_losses", fails)
    assert close(run(records, **changes), without)


def test_a_record_without_a_reply_counts_as_zero(run, make_records):
    from dataclasses import replace

    records = make_records(4)
    broken = [*records, replace(records[0], replies=())]
    changes = {"privacy__sampling_rate": 1.0}
    assert close(run(broken, **changes), run(records, **changes))


def test_if_every_record_fails_the_result_is_that_of_no_record(run, make_records, monkeypatch):
    empty = run([])
    monkeypatch.setattr(fedattn.train, "record_losses", lambda *_: 1 / 0)
    assert torch.equal(run(make_records(9), privacy__sampling_rate=1.0), empty)


def test_hooks_are_removed_when_training_crashes(generator, run, make_records, monkeypatch):
    model = generator()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fedattn.train, "record_losses", crash)
    with pytest.raises(KeyboardInterrupt):
        run(make_records(9), model=model)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("which", ["all", "bias_norm"])
def test_unit_none_is_plain_training(generator, tokenizer, make_records, run, optimizer, which):
    """One record at a time through torch's own optimizer, without padding."""
    model, records = generator(), make_records(6)
    twin = copy.deepcopy(model)
    names = trainable_names(twin, which)
    parameters = [dict(twin.named_parameters())[name] for name in names]
    plain = (
        torch.optim.SGD(parameters, lr=0.1)
        if optimizer == "sgd"
        else torch.optim.Adam(parameters, lr=0.1, betas=(0.9, 0.99))
    )
    for _ in range(3):
        plain.zero_grad()
        for record in records:
            example = pair(record, 1, tokenizer, model.shape.context_tokens)
            batch = collate([example], tokenizer, model.shape.reply_tokens)
            (record_losses(twin, batch).sum() / 4).backward()
        plain.step()
    expected = read_vector(twin, names) - read_vector(model, names)
    delta = run(
        records,
        model=model,
        model__trainable=which,
        train__local_steps=3,
        train__optimizer=optimizer,
        train__learning_rate=0.1,
        **PLAIN,
    )
    # Adam divides by a gradient's own size: coordinates near zero amplify float32's noise
    assert close(delta, expected, 1e-4 if optimizer == "sgd" else 1e-2)


def test_record_losses_are_mean_nats_of_the_reply(generator, tokenizer, make_records):
    model, records = generator(), make_records(5)
    pairs = [pair(r, 1, tokenizer, 12) for r in records]
    made = record_losses(model, collate(pairs, tokenizer))
    for row, (context, reply) in enumerate(pairs):
        inputs = torch.tensor([[tokenizer.bos, *reply[:-1]]])
        logs = model(torch.tensor([context]), inputs)[0].log_softmax(-1)
        nats = [-logs[t, token].item() for t, token in enumerate(reply)]
        assert made[row].item() == pytest.approx(sum(nats) / len(nats), rel=1e-4)


def test_training_errors_of_the_project_are_no_way_out_either(run, make_records, monkeypatch):
    empty = run([])

    def refuse(*_):
        raise FedattnError("canary")

    monkeypatch.setattr(fedattn.augment, "pair", refuse)
    assert torch.equal(run(make_records(4), privacy__sampling_rate=1.0), empty)


CLIENT = {
    "privacy__unit": "client",
    "privacy__noise": "distributed",
    "privacy__clip_norm": 0.01,
    "secagg__threshold": 3,
    "secagg__max_colluding": 1,
    "train__expected_batch_size": 5,
}


@pytest.mark.parametrize("noise", ["distributed", "server"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("size", [2, 64])
def test_a_client_s_update_is_that_of_plain_steps_on_examples_drawn_with_replacement(
    generator, tokenizer, make_records, run, noise, optimizer, size
):
    """The slow twin draws alike and computes one example at a time, without padding."""
    model, records = generator(), make_records(4, replies=3)
    twin, draws = copy.deepcopy(model), Randomness.seeded(1)
    parameters = list(twin.parameters())
    plain = (
        torch.optim.SGD(parameters, lr=0.1)
        if optimizer == "sgd"
        else torch.optim.Adam(parameters, lr=0.1, betas=(0.9, 0.99))
    )
    for _ in range(3):
        plain.zero_grad()
        chosen = [records[draws.below(4)] for _ in range(5)]
        for record in chosen:
            reply = record.replies[draws.below(3)]
            example = pair(record, reply, tokenizer, model.shape.context_tokens)
            batch = collate([example], tokenizer, model.shape.reply_tokens)
            (record_losses(twin, batch).sum() / 5).backward()
        plain.step()
    names = trainable_names(model, "all")
    expected = read_vector(twin, names) - read_vector(model, names)
    delta = run(
        records,
        model=model,
        train__local_steps=3,
        train__learning_rate=0.1,
        train__optimizer=optimizer,
        train__max_physical_batch=size,
        **{**CLIENT, "privacy__noise": noise},
    )
    assert delta.norm() > 0.01, "clipping is the codec's, and so is noise"
    assert close(delta, expected, 1e-4 if optimizer == "sgd" else 1e-2)


def test_a_client_s_update_follows_from_its_seed(run, make_records):
    records = make_records(6, replies=2)
    assert torch.equal(run(records, 5, **CLIENT), run(records, 5, **CLIENT))
    assert not torch.equal(run(records, 5, **CLIENT), run(records, 6, **CLIENT))


def test_a_client_without_a_usable_record_returns_exactly_zero(
    generator, tokenizer, run, make_records, make_config
):
    from dataclasses import replace

    mute = [replace(record, replies=()) for record in make_records(3)]
    assert not run([], **CLIENT).any()
    assert not run(mute, **CLIENT).any()
    made = noise_only(generator(), tokenizer, make_config(**CLIENT), Randomness.seeded(1)).delta
    assert made.shape == read_vector(generator(), trainable_names(generator(), "all")).shape
    assert not made.any()


def test_a_record_without_a_reply_is_never_drawn(run, make_records):
    from dataclasses import replace

    records = make_records(4)
    mute = replace(records[0], replies=())
    assert torch.equal(run([mute, *records, mute], **CLIENT), run(records, **CLIENT))


@pytest.mark.parametrize("failure", [raises, is_nan, is_infinite, has_nan_gradient])
def test_a_client_whose_training_fails_returns_exactly_zero(
    generator, run, make_records, monkeypatch, failure
):
    """In the second step of three, after the first has moved the model."""
    model, true_losses, calls = generator(), record_losses, []
    before = copy.deepcopy(model.state_dict())

    def fails(model, batch):
        losses = true_losses(model, batch)
        calls.append(len(losses))
        hit = torch.arange(len(losses)) == 0
        return failure(losses, hit) if len(calls) == 2 else losses

    monkeypatch.setattr(fedattn.train, "record_losses", fails)
    assert not run(make_records(4), model=model, **{**CLIENT, "train__local_steps": 3}).any()
    assert len(calls) >= 2
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_a_client_s_record_that_cannot_be_read_makes_its_update_zero(
    run, make_records, monkeypatch
):
    def refuse(*_):
        raise FedattnError("canary")

    monkeypatch.setattr(fedattn.augment, "pair", refuse)
    assert not run(make_records(4), **CLIENT).any()


def test_an_update_that_overflows_is_exactly_zero(run, make_records):
    assert not run(make_records(4), **CLIENT, train__learning_rate=1e38).any()


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("replies", [1, 4])
def test_a_client_s_steps_and_examples_are_public_whatever_it_holds(
    run, make_records, monkeypatch, count, replies
):
    rows, true_losses = [], record_losses

    def spy(model, batch):
        rows.append(len(batch))
        return true_losses(model, batch)

    monkeypatch.setattr(fedattn.train, "record_losses", spy)
    run(make_records(count, replies=replies), **{**CLIENT, "train__local_steps": 6})
    assert rows == [5] * 6


@pytest.mark.parametrize("held", ["nothing", "no reply", "unreadable"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_client_without_a_usable_record_takes_as_many_steps_and_no_shorter_ones(
    generator, tokenizer, make_config, make_records, monkeypatch, held, optimizer
):
    """An answer at once would tell the server that there was nothing to learn from."""
    from dataclasses import replace

    shapes, true_losses = [], record_losses

    def spy(model, batch):
        assert (batch.targets != IGNORED).all()  # as long as it is wide
        assert not (batch.context == tokenizer.pad).any()
        shapes.append((*batch.context.shape, batch.tokens.shape[1]))
        return true_losses(model, batch)

    monkeypatch.setattr(fedattn.train, "record_losses", spy)
    model = generator()
    before = copy.deepcopy(model.state_dict())
    config = make_config(**CLIENT, train__local_steps=6, train__optimizer=optimizer)
    mute = [replace(record, replies=()) for record in make_records(3)]
    if held == "unreadable":
        delta = noise_only(model, tokenizer, config, Randomness.seeded(1)).delta
    else:
        records = [] if held == "nothing" else mute
        delta = train_locally(model, tokenizer, records, config, Randomness.seeded(1)).delta
    shape = model.shape
    assert shapes == [(5, shape.context_tokens, shape.reply_tokens)] * 6
    assert not delta.any()
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_a_client_draws_its_conversations_equally_often_and_each_reply_of_one(
    run, make_records, monkeypatch
):
    """A conversation with many replies weighs no more than one with a single reply."""
    drawn, true_pair = [], pair
    short, long = make_records(1, seed=1)[0], make_records(1, seed=2, replies=3)[0]

    def spy(record, reply, *rest):
        drawn.append((record is long, reply))
        return true_pair(record, reply, *rest)

    monkeypatch.setattr(fedattn.augment, "pair", spy)
    run(
        [short, long],
        **{**CLIENT, "train__local_steps": 1, "train__expected_batch_size": 3000},
    )
    ofs = np.array([is_long for is_long, _ in drawn])
    assert abs(ofs.sum() - 1500) < 5 * math.sqrt(3000 / 4)
    counts = np.bincount([reply for is_long, reply in drawn if is_long], minlength=4)[1:]
    assert (np.abs(counts - ofs.sum() / 3) < 5 * math.sqrt(ofs.sum() * 2 / 9)).all()


@pytest.mark.parametrize("changes", [PLAIN, {}, CLIENT], ids=["none", "local", "client"])
def test_a_crash_leaves_the_model_as_it_was(generator, run, make_records, monkeypatch, changes):
    model, true_losses, calls = generator(), record_losses, []
    before = copy.deepcopy(model.state_dict())

    def crash(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true_losses(*given)

    monkeypatch.setattr(fedattn.train, "record_losses", crash)
    with pytest.raises(KeyboardInterrupt):
        run(make_records(9), model=model, **{**changes, "privacy__sampling_rate": 1.0})
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert not model.training
