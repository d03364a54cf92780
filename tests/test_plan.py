"""A plan prices what would run, says what margins cost, and refuses what cannot hold."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console
from scipy.stats import binom

from fedattn.data import load_dialogues
from fedattn.errors import ConfigError, FedattnError, PrivacyError, UpdateError
from fedattn.mechanism import Mechanism, threshold_of
from fedattn.plan import Plan, check_promises, make_plan
from fedattn.plan.margins import margins
from fedattn.plan.promises import abort_probability, enough_participations, skip_probability
from fedattn.plan.sizes import sizes
from fedattn.plan.table import plan_table
from fedattn.privacy.accountants import spend
from fedattn.privacy.events import PoissonGaussian, round_event
from fedattn.privacy.rows import hypothetical_spends, is_amplified, passed_budgets, spends

D = 500  # trainable parameters, where no model is needed
ONE_STEP = {
    "data__clients": 4,
    "secagg__threshold": 3,
    "secagg__max_colluding": 1,
    "train__local_steps": 1,
    "train__rounds": 2,
    "privacy__sampling_rate": 0.1,
}
CLIENTS = {
    "data__clients": 300,
    "train__rounds": 2,
    "privacy__unit": "client",
    "privacy__client_rate": 0.1,
    "privacy__epsilon_budget": {"outsider": 8.0},
    "secagg__threshold": 5,
    "secagg__max_colluding": 2,
}
NONE = {"privacy__unit": "none", "privacy__noise": "none", "privacy__epsilon_budget": None}
MODES = {
    "local": {"train__rounds": 2, "privacy__sampling_rate": 0.1},
    "distributed": {**ONE_STEP, "privacy__noise": "distributed"},
    "server": {**ONE_STEP, "privacy__noise": "server"},
    "client/distributed": {**CLIENTS, "privacy__noise": "distributed"},
    "client/server": {**CLIENTS, "privacy__noise": "server"},
    "none": {**NONE, "train__rounds": 2},
}
_made: dict[str, Plan] = {}
HYPOTHETICAL = {
    **MODES["client/distributed"],
    "privacy__hypothetical": {"cohort": 300, "population": 3000},
}


@pytest.fixture
def plan_of(make_config):
    """A mode's plan without a probe, made once."""

    def made(mode):
        if mode not in _made:
            _made[mode] = make_plan(make_config(**MODES[mode]), is_probed=False)
        return _made[mode]

    return made


def shown(plan):
    console = Console(width=80, file=io.StringIO())
    console.print(plan_table(plan))
    return console.file.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_s_epsilon_is_that_of_the_events_a_run_would_write(make_config, plan_of, mode):
    config, made = make_config(**MODES[mode]), plan_of(mode)
    events = [round_event(config, made.sizes.dimension)] * config.train.rounds
    told = made.to_json()
    for row, spent in spends(config, events).items():
        assert told["epsilon"][row] == ("infinity" if math.isinf(spent.epsilon) else spent.epsilon)
        assert told["failures"][row] == spent.failures
    assert told["hypothetical_epsilon"] is None
    assert told["budgets"] == config.privacy.budgets
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize("mode", ["local", "distributed", "client/distributed", "none"])
def test_a_probe_predicts_time_from_public_numbers(make_config, mode):
    config = make_config(**MODES[mode])
    seen = make_plan(config).prediction
    clients = config.data.clients
    examples = config.train.expected_batch_size * config.train.local_steps
    assert seen.examples_per_client == (examples / clients if mode == "distributed" else examples)
    assert seen.seconds_per_example >= 0  # 0 where other work on the machine hid it
    assert seen.seconds_per_step > 0
    assert seen.seconds_per_client >= seen.examples_per_client * seen.seconds_per_example
    cohort = clients * config.privacy.client_rate
    assert seen.seconds_per_round == pytest.approx(
        cohort * seen.seconds_per_client + seen.seconds_decoding
    )
    assert seen.seconds_per_run == config.train.rounds * seen.seconds_per_round
    assert seen.peak_bytes > 10_000_000


def test_a_plan_reads_no_conversation(make_config, monkeypatch):
    def read(*_args, **_kwargs):
        raise AssertionError("private data was read")

    monkeypatch.setattr("fedattn.data.load.read_source", read)
    config = make_config(data={"source": "jsonl", "path": "nowhere.jsonl", "clients": 3})
    with pytest.raises(AssertionError, match="was read"):  # the trap is where data comes in
        load_dialogues(config.data)
    assert make_plan(config).prediction is not None


def test_calibrated_noise_replaces_the_config_s_and_everything_is_priced_with_it(make_config):
    config = make_config(**MODES["local"])
    made = make_plan(config, epsilon=3.0, is_probed=False)
    told = made.to_json()
    assert 0.997 * 3.0 <= told["epsilon"]["outsider"] <= 3.0
    assert told["noise_multiplier"] == made.config.privacy.noise_multiplier != 1.0
    assert told["calibration"] == {
        "epsilon": 3.0,
        "against": ("outsider", "server", "collusion", "unmasked"),
        "configured": 1.0,
    }
    again = make_plan(made.config, is_probed=False).to_json()
    assert again["epsilon"] == told["epsilon"]
    assert again["config_sha256"] == told["config_sha256"]


def test_against_needs_an_epsilon(make_config):
    with pytest.raises(ConfigError, match="give both"):
        make_plan(make_config(), against="server")


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_the_round_before_which_a_run_stops_is_the_first_that_passes_a_budget(make_config, mode):
    config = make_config(**{**MODES[mode], "train__rounds": 12, "privacy__epsilon_budget": 2.5})
    made = make_plan(config, is_probed=False)
    event, stop = made.event, made.stops_before_round
    assert stop is not None
    dimension = made.sizes.dimension
    assert passed_budgets(config, dimension, [event] * (stop - 1)) == ()
    assert passed_budgets(config, dimension, [event] * stop) != ()
    assert min(made.rounds_within_budget.values()) == stop - 1
    assert f"would end before round {stop}" in shown(made)


def test_sizes_are_those_of_the_mechanism(make_config):
    config = make_config(**MODES["client/distributed"])
    found, mechanism = sizes(config, D), Mechanism(config, D)
    assert found.padded == mechanism.padded == 512
    assert found.modulus_bits == mechanism.modulus_bits(30)
    assert found.upload_bytes == 512 * (2 if found.modulus_bits <= 16 else 4)
    assert found.download_bytes == 2000
    assert found.expected_cohort == 30
    assert found.threshold == threshold_of(config, 30) == 29
    assert 0 < found.wrap_probability <= 2.0**-20
    assert found.share_deviation**2 == pytest.approx(mechanism.share_variance(30))
    # the noise on the mean, in the model's units: at least sigma C over the expected cohort
    assert found.noise_deviation >= 1.0 * 0.5 / 30


@pytest.mark.parametrize(("clip_range", "grid_scale", "bytes_"), [(0.5, 100.0, 2), (0.5, 1e6, 4)])
def test_a_coordinate_takes_two_bytes_where_the_modulus_allows(
    make_config, clip_range, grid_scale, bytes_
):
    config = make_config(secagg__clip_range=clip_range, secagg__grid_scale=grid_scale)
    assert sizes(config, D).upload_bytes == bytes_ * D


def test_probabilities_of_a_lost_round_are_those_of_the_binomial(make_config):
    config = make_config(
        **{**CLIENTS, "secagg__threshold": 25, "secagg__dropout_share": 0.1},
        privacy__noise="distributed",
    )
    pmf = [binom.pmf(k, 300, 0.1) for k in range(301)]
    assert skip_probability(config) == pytest.approx(sum(pmf[:25]))
    # 25..27 lose 2 at a share of 0.1: only from 27 on are 25 left
    assert abort_probability(config) == pytest.approx(sum(pmf[25:27]))
    assert skip_probability(make_config()) == abort_probability(make_config()) == 0


def test_each_margin_alone_follows_from_shares_and_bounds(make_config):
    config = make_config(**MODES["distributed"])
    spent = spends(config, [round_event(config, D)] * 2)
    found = {each.name: each for each in margins(config, D, spent["collusion"])}
    n, t, c = 4, 3, 1
    assert found["dropouts"].factor == pytest.approx(math.sqrt((n - c) / (t - c)))
    assert found["collusion"].factor == pytest.approx(math.sqrt(t / (t - c)))
    assert found["rounding"].factor == pytest.approx(1.01)
    event = round_event(config, D)
    sigma = math.sqrt(event.honest_variance) / event.l2
    gaussian = PoissonGaussian(0.1, sigma, 2)
    delta = spent["collusion"].mechanism_delta
    assert found["accounting"].epsilon_without == spend([gaussian], delta).epsilon
    less = PoissonGaussian(0.1, sigma / found["accounting"].factor, 2)
    assert spend([less], delta).epsilon == pytest.approx(spent["collusion"].epsilon, rel=3e-3)
    # without colluders every survivor's share counts: what the outsider's row counts already
    assert found["collusion"].epsilon_without == pytest.approx(spent["outsider"].epsilon, rel=1e-4)
    for each in found.values():
        assert each.factor > 1
        assert each.epsilon_without < spent["collusion"].epsilon


def test_an_outsider_to_sampled_clients_pays_no_margin_for_shares(make_config):
    config = make_config(**MODES["client/distributed"])
    spent = spends(config, [round_event(config, D)] * 2)["outsider"]
    found = {each.name: each for each in margins(config, D, spent)}
    for name in ("dropouts", "collusion"):
        assert found[name].factor == 1
        assert found[name].epsilon_without == spent.epsilon
    assert found["accounting"].epsilon_without < spent.epsilon


def test_local_noise_is_the_root_of_the_clients_above_noise_on_the_sum(make_config):
    config = make_config(**MODES["local"])
    spent = spends(config, [round_event(config, D)] * 2)["outsider"]
    (found,) = margins(config, D, spent)
    assert (found.name, found.factor) == ("local", math.sqrt(3))
    summed = PoissonGaussian(0.1, math.sqrt(3), 2 * config.train.local_steps)
    assert found.epsilon_without == spend([summed], 1e-5).epsilon


def test_a_hypothetical_plan_says_so_and_shows_the_real_epsilon_beside(make_config):
    config = make_config(**HYPOTHETICAL)
    made = make_plan(config, is_probed=False)
    told, pretended = made.to_json(), hypothetical_spends(config, made.sizes.dimension, 2)
    assert told["hypothetical_epsilon"]["outsider"] == pretended["outsider"].epsilon
    assert told["hypothetical_epsilon"]["outsider"] < 8 < float(told["epsilon"]["outsider"])
    assert any(label.startswith("HYPOTHETICAL") for label in told["labels"])
    assert "HYPOTHETICAL - fedattn plan" in shown(made).splitlines()[0]


@pytest.mark.parametrize("mode", MODES)
def test_the_table_names_every_adversary_and_fits_80_columns(plan_of, mode):
    text = shown(plan_of(mode))
    assert max(map(len, text.splitlines())) <= 80
    for row in ("outsider", "server", "collusion", "unmasked"):
        assert re.search(rf"^│ {row}\b", text, re.M)
    assert ("NOT PRIVATE" in text) == (mode == "none")
    assert "predicted" not in text


REFUSED = {
    "a sum that wraps": (
        {**MODES["distributed"], "secagg__grid_scale": 1e8},
        UpdateError,
        "modulus_bits.*lower grid_scale",
    ),
    "a modulus that is too small": (
        {**MODES["distributed"], "secagg__modulus_bits": 12},
        UpdateError,
        "modulus_bits.*use modulus_bits",
    ),
    "shares that cannot be drawn": (
        {**MODES["client/distributed"], "secagg__grid_scale": 4e5},
        PrivacyError,
        "must be in 2\\^-20..2\\^34; set another secagg.grid_scale",
    ),
    "a budget below the first round": (
        {**MODES["local"], "privacy__epsilon_budget": 0.5},
        PrivacyError,
        "first round costs.*nothing would be trained; raise noise_multiplier",
    ),
    "a delta too large for the pretended population": (
        {
            **MODES["client/distributed"],
            "privacy__hypothetical": {"cohort": 300, "population": 30_000},
        },
        PrivacyError,
        "population that `hypothetical` pretends; lower delta",
    ),
    "cohorts too small too often": (
        {**MODES["client/distributed"], "secagg__threshold": 25},
        PrivacyError,
        "lower threshold, or raise client_rate",
    ),
    "memory": (
        {"train__draws": 8, "train__max_batch_bytes": 100_000},
        ConfigError,
        "the 8 draws of one conversation.*raise it or lower train.draws",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_run_or_hold_is_refused_with_the_remedy(make_config, reason):
    changes, error, message = REFUSED[reason]
    config = make_config(**changes)
    with pytest.raises(error, match=message) as caught:
        check_promises(config, D)
    assert caught.value.exit_code == 2
    with pytest.raises(error, match=message):
        make_plan(config, is_probed=False)


@pytest.mark.parametrize("mode", MODES)
def test_what_holds_is_not_refused(make_config, mode):
    check_promises(make_config(**MODES[mode]), D)


def test_a_plan_above_epsilon_20_is_refused_unless_one_says_i_know(make_config):
    changes = {"train__rounds": 60, "privacy__sampling_rate": 0.5, "train__local_steps": 4}
    with pytest.raises(PrivacyError, match=r"above 20.*i_know: true") as caught:
        make_plan(make_config(**changes), is_probed=False)
    assert caught.value.exit_code == 2
    made = make_plan(make_config(**changes, privacy__i_know=True), is_probed=False)
    assert made.rows["outsider"].epsilon > 20
    # a run of it is not refused: the budget ends it in time
    check_promises(make_config(**changes), D)
    assert made.stops_before_round is not None


def test_amplification_that_a_cap_would_end_is_a_warning_with_the_cap_that_keeps_it(
    make_config, plan_of
):
    changes = {**MODES["client/distributed"], "train__rounds": 40}
    bound = make_config(**changes, privacy__max_participations=8)
    enough = enough_participations(bound)
    assert 8 < enough < 40
    one_by_one = (
        cap
        for cap in range(1, 41)
        if is_amplified(make_config(**changes, privacy__max_participations=cap))
    )
    assert enough == next(one_by_one)
    made = make_plan(
        make_config(**changes, privacy__max_participations=8, privacy__i_know=True),
        is_probed=False,
    )
    assert f"max_participations {enough} or more would keep it" in made.warnings[0]
    kept = make_config(**changes, privacy__max_participations=enough)
    assert make_plan(kept, is_probed=False).warnings == ()
    assert made.rows["outsider"].epsilon > make_plan(kept, is_probed=False).rows["outsider"].epsilon
    assert plan_of("local").warnings == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__delta": 1e-3},
        {"secagg__threshold": 4},
        {"train__weights": "examples"},
        {"privacy__client_sampling": "fixed"},
        {"privacy__client_sampling_seed": 7},
    ],
)
def test_what_needs_no_model_the_config_refuses_itself(make_config, changes):
    with pytest.raises(FedattnError):
        make_config(**changes)
