"""policy.yaml: strict, explained, safe by default; and the rules, as pure functions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml

from fedattn.config import config_from_dict
from fedattn.data import partition
from fedattn.data.jsonl import read_jsonl
from fedattn.device_ledger import Answer, Lines
from fedattn.errors import ConfigError, RefusalError
from fedattn.footprint import bytes_per_conversation
from fedattn.instruction import Instruction
from fedattn.policy import (
    Limits,
    OwnData,
    Policy,
    check,
    check_spend,
    default_policy_yaml,
    load_policy,
    parse_policy,
)
from fedattn.policy.rules import answer_to, check_mechanism, check_replay, life_events
from fedattn.privacy.events import GaussianSum, NoNoise, PoissonGaussian, SkellamSum, round_event
from fedattn.privacy.rows import life_epsilon, spends
from tests.federation import conversations, tiny, write

HASH = "ab" * 32
DIMENSION = 1000


def limited(**changes):
    limits = {
        "max_epsilon": 50.0,
        "delta": 1e-5,
        "min_cohort": 3,
        "model_starts": ["random"],
        "modes": [
            "conversation/local",
            "conversation/distributed",
            "conversation/server",
            "client/distributed",
            "client/server",
        ],
    } | changes
    return Policy(data=OwnData(path="chats.jsonl"), limits=Limits(**limits))


def asked(**changes):
    """An instruction that `limited()` allows, with changes of its config."""
    return of(tiny("data.jsonl", **changes))


def of(config, round_=1):
    return Instruction(
        config=config,
        run="00" * 32,
        round=round_,
        start_sha256="aa" * 32,
        model_sha256="bb" * 32,
        dimension=DIMENSION,
        ledger_head="00" * 32,
        roster=tuple(bytes([i]) * 32 for i in range(4)),
        event=round_event(config, DIMENSION),
    )


def spent(config, count=1):
    instruction = of(config)
    mode = f"{config.privacy.unit}/{config.privacy.noise}"
    answer = Answer(HASH, "dd" * 32, 1, config.sha256(), mode, instruction.event)
    return [replace(answer, round=i) for i in range(count)]


# ---- the file


def test_the_generated_policy_reads_as_the_safe_defaults():
    text = default_policy_yaml('/data/my "own" chäts.jsonl', [HASH, "cd" * 32])
    assert parse_policy(text) == Policy(
        app_hashes=[HASH, "cd" * 32],
        data=OwnData(path='/data/my "own" chäts.jsonl'),
        limits=Limits(),
    )
    assert parse_policy(default_policy_yaml("d.jsonl", [])).app_hashes == []


def test_the_generated_policy_explains_every_key():
    lines = default_policy_yaml("d.jsonl", [HASH]).splitlines()
    for above, line in pairwise(lines):
        is_key = line.rstrip().endswith(":") or ": " in line.partition("#")[0]
        if is_key and line.strip() not in ("data:", "limits:"):
            assert "#" in line or "#" in above, line
    stated = yaml.safe_load("\n".join(lines))
    assert set(stated["limits"]) == set(Limits.model_fields)
    assert set(stated) == set(Policy.model_fields) - {"agreed_config", "seed"}


def test_the_defaults_trust_no_server_with_sums():
    limits = Limits()
    assert not any(mode.endswith("/server") for mode in limits.modes)
    assert limits.budgets == {"outsider": 8.0, "server": 8.0, "collusion": 8.0}
    assert (limits.min_cohort, limits.min_colluding, limits.model_starts) == (5, 1, ["public"])
    assert parse_policy(default_policy_yaml("d", [])).seed is None


@pytest.mark.parametrize("agreed", [True, False])
def test_a_saved_policy_is_read_back(tmp_path, agreed):
    policy = Policy.agreed(tiny("data.jsonl", seed=4)) if agreed else limited()
    policy.save(tmp_path / "policy.yaml")
    assert load_policy(tmp_path / "policy.yaml") == policy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max_epsilon: 8", "max_epsilon: -1"), "limits.max_epsilon"),
        (("max_epsilon: 8", "max_epsilonn: 8"), "limits.max_epsilonn: unknown key; remove it"),
        (("min_cohort: 5", "min_cohort: five"), "limits.min_cohort is 'five': input should be"),
        (("min_cohort: 5", "min_cohort: 0"), "limits.min_cohort is 0: input should be greater"),
        (("client/distributed", "none/none"), "limits.modes.2 is 'none/none': input should be"),
        (("threads: 0", "threads: 0\nthreads: 1"), "key `threads` is said twice; keep one"),
        (("device: auto", "device: gpu"), "device is 'gpu': string should match pattern"),
        (("max_epsilon: 8", "max_epsilon: {}"), "limits: max_epsilon: name at least one"),
        (("[public]", "[]"), "limits.model_starts"),
        ((f'"{HASH}"', '"abc"'), "app_hashes.0 is 'abc': string should match pattern"),
        (("threads: 0", "threads: 0\nseed: -3"), "seed is -3"),
    ],
)
def test_a_wrong_key_value_or_type_is_named(tmp_path, change, message):
    text = default_policy_yaml("d.jsonl", [HASH])
    assert change[0] in text
    path = tmp_path / "policy.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_policy_that_is_missing_or_no_text_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such policy; `fedattn federation join` writes one"):
        load_policy(tmp_path / "policy.yaml")
    (tmp_path / "policy.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load_policy(tmp_path / "policy.yaml")
    with pytest.raises(ConfigError, match="must be a mapping of keys"):
        parse_policy("- 1")


def test_impossible_combinations_are_refused():
    config = tiny("data.jsonl")
    for fields, message in (
        ({}, "set either `limits` or `agreed_config`"),
        ({"limits": Limits(), "agreed_config": config}, "and not both"),
        ({"limits": Limits()}, "needs the path of its own conversations"),
        ({"agreed_config": config, "seed": 3}, "seed must be that of `agreed_config`"),
    ):
        with pytest.raises(ValueError, match=message):
            Policy(**fields)


def test_own_data_are_all_conversations_in_the_order_of_a_shard(tmp_path):
    """A device with a shard of a simulation's data trains on what that simulation's client has."""
    items = conversations(80)
    whole = tiny(write(tmp_path / "all.jsonl", items), data={"clients": 4}).data
    parts = partition(read_jsonl(tmp_path / "all.jsonl").dialogues, whole).train
    for part in parts:
        names = {dialogue.id for dialogue in part}
        shard = write(tmp_path / "shard.jsonl", [i for i in items[::-1] if i["id"] in names])
        own = OwnData(path=str(shard)).config
        split = partition(read_jsonl(shard).dialogues, own)
        assert split.train == (part,)
        assert split.test == split.validation == ()


# ---- the rules


def refused(policy, instruction):
    with pytest.raises(RefusalError) as caught:
        check(policy, instruction)
    return str(caught.value)


def test_what_is_within_the_limits_is_allowed():
    check(limited(), asked())
    check(limited(min_noise_multiplier=1.0, max_clip_norm=0.5, min_colluding=1), asked())


REFUSALS = [
    (
        {"modes": ["client/distributed"]},
        {},
        "mode: conversation/local is not among the modes that this device allows",
    ),
    (
        {},
        {"privacy": {"unit": "none", "noise": "none", "epsilon_budget": None}},
        "mode: none/none is not among the modes that this device allows",
    ),
    (
        {"min_noise_multiplier": 1.1},
        {},
        "noise: noise_multiplier 1 is below this device's least, 1.1",
    ),
    (
        {"max_clip_norm": 0.4},
        {},
        "clip_norm: 0.5 is above this device's most, 0.4",
    ),
    (
        {"min_cohort": 4},
        {},
        "cohort: a sum of 3 devices is below this device's least, 4",
    ),
    (
        {"min_colluding": 2},
        {},
        "colluding: max_colluding 1 is below this device's least, 2",
    ),
    (
        {},
        {"seed": 5},
        "seed: predictable randomness is NOT PRIVATE, and not allowed here",
    ),
    (
        {},
        {
            "privacy": {
                "unit": "client",
                "noise": "distributed",
                "hypothetical": {"cohort": 100, "population": 1000},
            }
        },
        "hypothetical: noise of a pretended cohort is for simulations alone",
    ),
    (
        {"model_starts": ["public"]},
        {},
        "start_model: is not among those that this device allows",
    ),
    (
        {"model_starts": ["public", "random"]},
        {"model": {"start": "/etc/passwd", "architecture": None}},
        "start_model: is not among those that this device allows",
    ),
]


@pytest.mark.parametrize(("limits", "changes", "message"), REFUSALS)
def test_what_goes_beyond_a_limit_is_refused_by_its_rule(limits, changes, message):
    config = tiny("data.jsonl", **changes)
    instruction = replace(asked(), config=config)
    assert refused(limited(**limits), instruction) == message


def test_a_seeded_device_follows_its_own_seed_alone():
    seeded = limited().model_copy(update={"seed": 5})
    check(seeded, asked(seed=5))
    for other in (asked(seed=6), asked()):
        assert refused(seeded, other).startswith("seed: ")


def over(policy, config, before):
    try:
        check_spend(policy, of(config), before)
    except RefusalError as error:
        return str(error)
    return None


LOCAL = tiny("data.jsonl")
DISTRIBUTED = tiny("data.jsonl", privacy={"unit": "client", "noise": "distributed"})
SUMMED = tiny("data.jsonl", privacy={"noise": "distributed"}, train={"local_steps": 1, "rounds": 9})
SERVER = tiny("data.jsonl", privacy={"unit": "client", "noise": "server"})


@pytest.mark.parametrize("config", [LOCAL, DISTRIBUTED, SUMMED, SERVER], ids=str)
def test_the_budget_is_what_the_whole_life_costs(config):
    """The slow twin: a config with as many rounds, priced as a report would."""
    whole = config_from_dict(
        {**config.model_dump(), "train": {**config.train.model_dump(), "rounds": 3}}
    )
    rows = spends(whole, [of(whole).event] * 3)
    row = "outsider" if config is SERVER else "server"
    assert math.isfinite(rows[row].epsilon)
    if config.privacy.noise == "local" or config is SERVER:
        assert life_epsilon([of(config).event] * 3, row, 1e-5) == rows[row].epsilon
    else:  # the three rounds' failures are the same three
        assert life_epsilon([of(config).event] * 3, row, 1e-5) == pytest.approx(
            rows[row].epsilon, rel=1e-9
        )
    modes = [f"{config.privacy.unit}/{config.privacy.noise}"]
    for slack, message in ((1.001, None), (0.999, f"budget: epsilon against {row}")):
        policy = limited(modes=modes, max_epsilon={row: slack * rows[row].epsilon})
        found = over(policy, config, spent(config, 2))
        assert (found is None) if message is None else found.startswith(message)


def test_rounds_of_other_runs_and_federations_count():
    one = life_epsilon([of(LOCAL).event], "server", 1e-5)
    other = tiny("data.jsonl", name="another", train={"learning_rate": 0.1})
    policy = limited(max_epsilon={"server": 1.05 * one})
    assert over(policy, LOCAL, []) is None
    assert (
        over(policy, LOCAL, spent(other)) == "budget: epsilon against server would pass its budget"
    )


def test_sampling_of_clients_by_the_server_saves_a_device_nothing():
    sampled = tiny(
        "data.jsonl",
        privacy={
            "unit": "client",
            "noise": "distributed",
            "client_rate": 0.9,
            "epsilon_budget": {"outsider": 200.0},
        },
    )
    event = of(sampled).event
    alone = replace(event, client_rate=1.0)
    assert event.client_rate == 0.9
    for row in ("outsider", "server", "collusion", "unmasked"):
        assert life_epsilon([event] * 2, row, 1e-5) == life_epsilon([alone] * 2, row, 1e-5)


def test_a_round_without_noise_costs_everything():
    event, plain = of(LOCAL).event, of(SERVER).event
    assert isinstance(plain, GaussianSum)
    for row in ("outsider", "server", "collusion", "unmasked"):
        assert life_epsilon([event, NoNoise()], row, 1e-5) == math.inf
    assert life_epsilon([plain], "server", 1e-5) == math.inf
    assert life_epsilon([plain], "outsider", 1e-5) < math.inf
    assert life_epsilon([], "server", 1e-5) == 0


def test_gaussian_and_skellam_rounds_are_priced_apart_and_added():
    gaussian, skellam = of(LOCAL).event, of(SUMMED).event
    assert isinstance(gaussian, PoissonGaussian)
    assert isinstance(skellam, SkellamSum)
    both = life_epsilon([gaussian, skellam, gaussian], "server", 2e-5)
    parts = life_epsilon([gaussian] * 2, "server", 1e-5), life_epsilon([skellam], "server", 1e-5)
    assert sum(parts) == pytest.approx(both, rel=0.01)  # but for what failures take of delta
    assert both > life_epsilon([gaussian] * 2, "server", 2e-5)


def test_more_than_can_be_priced_is_more_than_any_budget():
    loud = replace(of(LOCAL).event, noise_multiplier=0.01, sampling_rate=1.0)
    assert life_epsilon([loud] * 50, "server", 1e-5) == math.inf
    assert life_epsilon([of(DISTRIBUTED).event], "server", 1e-13) == math.inf


def test_clients_rounds_count_double_where_conversations_are_protected_too():
    """A conversation more or less moves a client's update by up to twice the clip norm."""
    clients, mixed = spent(DISTRIBUTED, 2), [*spent(DISTRIBUTED), *spent(SUMMED)]
    assert life_events(clients) == [of(DISTRIBUTED).event] * 2
    doubled, same = life_events(mixed)
    assert (doubled.l2, doubled.l1) == (2 * clients[0].event.l2, 2 * clients[0].event.l1)
    assert same == of(SUMMED).event
    by_server, _ = life_events([*spent(SERVER), *spent(LOCAL)])
    assert by_server.l2 == 2 * of(SERVER).event.l2
    assert life_epsilon(life_events(mixed), "server", 1e-5) > life_epsilon(
        [answer.event for answer in mixed], "server", 1e-5
    )


def test_participations_are_counted_over_the_datas_life():
    other = tiny("data.jsonl", name="another")
    policy = limited(max_participations=3)
    assert over(policy, LOCAL, spent(other, 2)) is None
    assert over(policy, LOCAL, spent(other, 3)) == (
        "participations: this device has taken part as often as it may"
    )


def test_a_configs_own_cap_is_held_too():
    """The server's report counts on it."""
    capped = tiny("data.jsonl", privacy={"max_participations": 1})
    assert over(limited(), capped, spent(LOCAL, 4)) is None
    assert over(limited(), capped, spent(capped)).startswith("participations: ")


def test_an_agreed_config_with_a_past_that_cannot_be_priced_with_it_is_refused():
    policy = Policy.agreed(tiny("data.jsonl", train={"rounds": 9}))
    assert over(policy, policy.agreed_config, []) is None
    assert over(policy, policy.agreed_config, spent(SUMMED)) == (
        "budget: cannot be priced with what was spent before"
    )


def test_a_number_holds_against_whom_all_allowed_modes_protect():
    rows = {
        ("conversation/local",): {"outsider", "server", "collusion", "unmasked"},
        ("conversation/local", "client/distributed"): {"outsider", "server", "collusion"},
        ("conversation/local", "client/server"): {"outsider"},
    }
    for modes, expected in rows.items():
        assert set(Limits(modes=list(modes)).budgets) == expected
    assert Limits(max_epsilon={"unmasked": 3.0}).budgets == {"unmasked": 3.0}


def test_no_round_of_a_run_is_answered_twice_nor_one_before_it():
    """Else a server could rewind its ledger and show an auditor one of two rounds."""
    first = asked()
    lines = Lines(accepted=(answer_to(replace(first, round=5)),))
    for number in (1, 4, 5):
        again = replace(first, round=number, ledger_head="ab" * 32)
        with pytest.raises(RefusalError, match=r"^replay: this run's round"):
            check_replay(again, lines)
    check_replay(replace(first, round=6), lines)
    check_replay(replace(first, round=1, run="ab" * 32), lines)  # another run


CLIENT = {"unit": "client", "noise": "distributed"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"local_steps": 1_001}}, "work: more local steps"),
        (
            {"train": {"local_steps": 1_000, "expected_batch_size": 101}, "privacy": CLIENT},
            "work: more local steps",
        ),
        ({"train": {"draws": 17}}, "work: 17 draws are above this device's most, 16"),
        (
            {"data": {"clients": 100_001}, "secagg": {"threshold": 60_000, "clip_range": 1e-3}},
            "cohort: 100001 clients",
        ),
    ],
)
def test_work_without_end_is_refused(changes, said):
    instruction = of(tiny("data.jsonl"))
    with pytest.raises(RefusalError, match=f"^{said}"):
        check(limited(), replace(instruction, config=tiny("data.jsonl", **changes)))


def test_draws_are_allowed_up_to_the_limit():
    check(limited(), asked(train={"draws": 16}))
    check(limited(max_draws=20), asked(train={"draws": 20}))
    assert refused(limited(max_draws=3), asked(train={"draws": 4})).startswith("work: 4 draws")


def test_a_conversation_that_takes_more_memory_than_a_batch_may_is_refused():
    """Else memory would run out on the devices that drew a record, and on no other."""
    one = bytes_per_conversation(asked().config)
    roomy = limited().model_copy(update={"max_batch_bytes": 4 * one})
    check(roomy, asked(train={"draws": 4}))
    said = refused(roomy, asked(train={"draws": 5}))
    assert said == f"work: one conversation takes {5 * one} bytes, above max_batch_bytes, {4 * one}"
    tight = limited().model_copy(update={"max_batch_bytes": one - 1})
    assert refused(tight, asked()).startswith("work: one conversation takes")
    # the server's own wish does not widen it
    wish = {"draws": 5, "max_batch_bytes": 1 << 40, "max_physical_batch": 1 << 20}
    assert refused(roomy, asked(train=wish)).startswith("work: one conversation takes")


def test_more_draws_than_are_computed_at_once_are_refused():
    small = limited().model_copy(update={"max_physical_batch": 3})
    check(small, asked(train={"draws": 3}))
    said = refused(small, asked(train={"draws": 4, "max_physical_batch": 64}))
    assert said.startswith("work: 4 draws of a conversation, which are computed at once,")


def test_an_agreed_config_whose_conversation_does_not_fit_is_refused():
    config = tiny("data.jsonl", train={"draws": 2, "max_batch_bytes": 1000})
    assert refused(Policy.agreed(config), of(config)).startswith("work: one conversation takes")


def test_what_the_model_has_not_is_refused_whatever_memory_there_is():
    roomy = limited().model_copy(update={"max_batch_bytes": 1 << 30})
    for which in ("last_9", "lora(9)", ["decoder.7.*"]):
        assert refused(roomy, asked(model={"trainable": which})).startswith("dimension: ")


@pytest.mark.parametrize("changes", [{"noise_multiplier": 1e9}, {"noise_multiplier": 1e12}])
def test_what_the_codec_cannot_encode_is_refused_before_data_are_read(changes):
    config = tiny("data.jsonl", privacy={**CLIENT, **changes})
    instruction = replace(of(tiny("data.jsonl")), config=config)
    with pytest.raises(RefusalError, match=r"^mechanism: "):
        check_mechanism(instruction)
