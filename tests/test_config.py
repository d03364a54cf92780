"""Every wrong key, type or combination is named with its value and a remedy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedattn.config import (
    Config,
    config_from_dict,
    config_from_json,
    load_config,
    parse_config,
)
from fedattn.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - {FOLDER / "pretrain.yaml"})  # a recipe, no run
BASE: dict[str, Any] = {
    "name": "test",
    "privacy": {"unit": "conversation", "noise": "local", "epsilon_budget": 8.0},
    "secagg": {"threshold": 5},
}
TEXT = yaml.safe_dump(BASE)


def changed(**changes: Any) -> dict[str, Any]:
    """BASE with `section__key=value` set; `None` as value of a whole section removes it."""
    raw = copy.deepcopy(BASE)
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            raw.setdefault(section, {})[leaf] = value
        elif value is None:
            raw.pop(section)
        else:
            raw[section] = value
    return raw


def refusal(raw: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(raw)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_the_base_of_these_tests_is_valid():
    assert config_from_dict(BASE).is_private


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data__source": "jsonl"}, ["data", "set `path` with `source: jsonl` and only then"]),
        ({"data__path": "x.jsonl"}, ["data", "set `path` with `source: jsonl` and only then"]),
        (
            {"data__validation_share": 0.3, "data__test_share": 0.3},
            ["data", "validation_share + test_share must be at most 0.5"],
        ),
        ({"model__start": "random"}, ["model", "set `architecture` with `start: random`"]),
        ({"model__architecture": {}}, ["model", "set `architecture` with `start: random`"]),
        (
            {"model": {"start": "random", "architecture": {"d_model": 10, "heads": 4}}},
            ["model.architecture", "d_model must be a multiple of heads"],
        ),
        ({"privacy__unit": "none"}, ["privacy", "`unit: none` goes with `noise: none`"]),
        ({"privacy__noise": "none"}, ["privacy", "`unit: none` goes with `noise: none`"]),
        (
            {"privacy__unit": "none", "privacy__noise": "none"},
            ["privacy", "`epsilon_budget` cannot hold", "drop it or choose `unit: conversation`"],
        ),
        (
            {"privacy__noise_multiplier": 0.0},
            ["privacy", "noise_multiplier must be above 0", "say `unit: none`"],
        ),
        ({"privacy__epsilon_budget": None}, ["privacy", "epsilon_budget is needed"]),
        (
            {"privacy__delta": 2e-5, "privacy__max_units": 10_000},
            ["privacy", "delta 2e-05 is above 1/(10 max_units) = 1e-05", "lower delta"],
        ),
        ({"secagg__threshold": 9}, ["secagg.threshold 9 is above data.clients 8", "lower it"]),
        ({"secagg__max_colluding": 8}, ["secagg.max_colluding 8 must be below data.clients 8"]),
        (
            {"secagg__threshold": 4},
            ["secagg.threshold 4 must satisfy 2t > n + c = 8", "use 5 or more"],
        ),
        (
            {"secagg__max_colluding": 3},
            ["secagg.threshold 5 must satisfy 2t > n + c = 11", "use 6 or more"],
        ),
        (
            {"secagg__clip_range": 1024.0},
            [
                "secagg: clients * (clip_range * grid_scale + 1) = 8589934600 must be below 2^31",
                "= 2147483648, or the sum would wrap; lower grid_scale or clip_range",
            ],
        ),
        (
            {"secagg__modulus_bits": 16},
            [
                "= 4194312 must be below 2^15 = 32768, or the sum would wrap",
                "lower grid_scale or clip_range, or use modulus_bits 24",
            ],
        ),
        ({"secagg__clip_range": 1e200, "secagg__grid_scale": 1e200}, ["= inf must be below 2^31"]),
        ({"faults": [{"round": 9, "clients": 1}]}, ["faults: round 9 is above train.rounds 8"]),
        (
            {"faults": [{"round": 1, "clients": 9}]},
            ["faults: 9 clients are above data.clients 8"],
        ),
    ],
)
def test_impossible_combination_names_key_value_and_remedy(changes, parts):
    message = refusal(changed(**changes))
    for part in parts:
        assert part in message


@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 45))
def test_the_remedy_for_a_low_threshold_works(n, t, c):
    raw = changed(data__clients=n, secagg__threshold=t, secagg__max_colluding=c)
    raw["secagg"]["dropout_share"] = 0.0
    if t <= n and c < n and 2 * t > n + c:
        assert config_from_dict(raw).secagg.threshold == t
        return
    message = refusal(raw)
    if "use " in message:
        raw["secagg"]["threshold"] = int(message.split("use ")[1].split()[0])
        assert config_from_dict(raw)


@pytest.mark.parametrize("section", ["name", "privacy", "secagg"])
def test_missing_section_is_named(section):
    assert f"{section}: missing; add it" in refusal(changed(**{section: None}))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train__epochs": 3}, "train.epochs"),
        ({"privcy": {}}, "privcy"),
        (
            {"model": {"start": "random", "architecture": {"layers": 2}}},
            "model.architecture.layers",
        ),
        ({"faults": [{"round": 1, "clients": 1, "who": 2}]}, "faults.0.who"),
    ],
)
def test_unknown_key_is_named_wherever_it_is(changes, key):
    assert f"{key}: unknown key; remove it or correct its spelling" in refusal(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"train__rounds": "3"}, "train.rounds is '3'"),
        ({"train__rounds": 3.0}, "train.rounds is 3.0"),
        ({"train__rounds": True}, "train.rounds is True"),
        ({"train__rounds": 0}, "train.rounds is 0"),
        ({"train__device": "tpu"}, "train.device is 'tpu'"),
        ({"train__optimizer": "lion"}, "train.optimizer is 'lion'"),
        ({"train__learning_rate": float("inf")}, "train.learning_rate is inf"),
        ({"privacy__sampling_rate": 0}, "privacy.sampling_rate is 0"),
        ({"privacy__sampling_rate": 1.5}, "privacy.sampling_rate is 1.5"),
        ({"privacy__sampling_rate": float("nan")}, "privacy.sampling_rate is nan"),
        ({"privacy__noise_multiplier": float("nan")}, "privacy.noise_multiplier is nan"),
        ({"privacy__clip_norm": -1}, "privacy.clip_norm is -1"),
        ({"privacy__delta": 1}, "privacy.delta is 1"),
        ({"privacy__unit": "message"}, "privacy.unit is 'message'"),
        ({"secagg__modulus_bits": 7}, "secagg.modulus_bits is 7"),
        ({"secagg__modulus_bits": 33}, "secagg.modulus_bits is 33"),
        ({"train__draws": 0}, "train.draws is 0"),
        ({"train__draws": 257}, "train.draws is 257"),
        ({"model__trainable": "last_1\u0663"}, "model.trainable is 'last_1\u0663'"),
        ({"model__trainable": "lora(1\u0663)"}, "model.trainable is 'lora(1\u0663)'"),
        ({"secagg__modulus_bits": 16.0}, "secagg.modulus_bits is 16.0"),
        ({"secagg__modulus_bits": True}, "secagg.modulus_bits is True"),
        ({"secagg__modulus_bits": "16"}, "secagg.modulus_bits is '16'"),
        ({"data__test_share": 1.0}, "data.test_share is 1.0"),
        ({"data__min_turns": 1}, "data.min_turns is 1"),
        ({"data__thin": {"ann": 0.0}}, "data.thin.ann is 0.0"),
        ({"name": "a b"}, "name is 'a b'"),
        ({"name": "a\n"}, r"name is 'a\n'"),
        ({"name": ""}, "name is ''"),
        ({"faults": [{"round": 1, "clients": 1, "stage": "nap"}]}, "faults.0.stage is 'nap'"),
    ],
)
def test_wrong_value_is_named_with_its_key(changes, shown):
    assert f"  {shown}: " in refusal(changed(**changes))


def test_a_list_of_patterns_is_short():
    """A device matches an instruction's against every parameter before it declines anything."""
    at_most = "model.trainable: at most 64 patterns of at most 200 characters"
    for patterns in (["*"] * 64, ["*" * 200]):
        assert len(config_from_dict(changed(model__trainable=patterns)).model.trainable)
    for patterns in (["*"] * 65, ["*" * 201]):
        assert at_most in refusal(changed(model__trainable=patterns))


def test_all_problems_are_listed_at_once():
    message = refusal(changed(train__rounds=0, privacy__clip_norm=0.0, eval__samples=-1))
    assert message.startswith("config: 3 problem(s)\n")
    assert all(key in message for key in ("train.rounds", "privacy.clip_norm", "eval.samples"))


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        config_from_dict(BASE).privacy.clip_norm = 9.0


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.e-5", "1.0e-5", "0.00001", "+1e-5"])
def test_every_spelling_of_a_small_number_is_a_float(text):
    assert parse_config(TEXT, [f"privacy.delta={text}"]).privacy.delta == 1e-5


def test_words_that_look_like_numbers_stay_words():
    assert parse_config(TEXT, ["name=1e5x"]).name == "1e5x"
    assert parse_config(TEXT, ["data.salt='1e5'"]).data.salt == "1e5"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (TEXT + "name: again\n", 8, "name"),
        ("name: a\nprivacy:\n  unit: none\n  noise: none\n  unit: none\n", 5, "unit"),
    ],
)
def test_a_key_said_twice_is_named_with_its_line(text, line, key):
    with pytest.raises(ConfigError, match=f"^here.yaml line {line}: key `{key}` is said twice"):
        parse_config(text, where="here.yaml")


def test_a_yaml_error_names_file_and_line():
    with pytest.raises(ConfigError, match=r"^here.yaml line 2: not valid YAML"):
        parse_config("name: a\nb: c: d\n", where="here.yaml")


@pytest.mark.parametrize("text", ["", "- 1\n", "word", "3", "null"])
def test_what_is_no_mapping_is_refused(text):
    with pytest.raises(ConfigError, match="must be a mapping of keys; see configs/quickstart"):
        parse_config(text)


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['true']", "a: !!python/name:os.system", "a: *b", "\x00"],
)
def test_yaml_that_would_run_code_or_point_nowhere_is_refused(text):
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_config(text)


@pytest.mark.parametrize("text", ["? [a, b]\n: c", "a: !!map [1]", "a: !!int x", "a: 2020-99-99"])
def test_odd_yaml_is_a_config_error(text):
    with pytest.raises(ConfigError):
        parse_config(text)


def test_a_config_that_the_codec_would_refuse_is_refused():
    with pytest.raises(ConfigError):
        parse_config(TEXT, ["secagg.clip_range=1.0", "secagg.grid_scale=268435455.5"])


@pytest.mark.parametrize(
    ("clients", "grid_scale", "bits"),
    [
        (8, 1048576.0, 24),
        (8, 1.0, 8),
        (15, 14.0, 8),  # 15 * (7 + 1) = 120
        (16, 14.0, 9),  # 128
        (100, 652.0, 16),  # 32,700
        (100, 654.0, 17),  # 32,800
        (8, 536870900.0, 32),
    ],
)
def test_auto_is_the_fewest_bits_that_cannot_wrap(clients, grid_scale, bits):
    raw = changed(data__clients=clients, secagg__grid_scale=grid_scale, secagg__threshold=clients)
    raw["secagg"]["dropout_share"] = 0.0
    config = config_from_dict(raw)
    assert (config.secagg.modulus_bits, config.modulus_bits) == ("auto", bits)
    assert '"modulus_bits":"auto"' in config.canonical_json()
    raw["secagg"]["modulus_bits"] = bits
    assert config_from_dict(raw).modulus_bits == bits
    if bits > 8:
        raw["secagg"]["modulus_bits"] = bits - 1
        assert f"or use modulus_bits {bits}" in refusal(raw)


def test_more_bits_than_needed_are_taken():
    assert parse_config(TEXT, ["secagg.modulus_bits=32"]).modulus_bits == 32
    assert parse_config(TEXT, ["secagg.modulus_bits=auto"]).modulus_bits == 24


@pytest.mark.parametrize("seed", [1 << 64, 1 << 300, -(1 << 300)])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ConfigError, match="seed"):
        parse_config(TEXT, [f"seed={seed}"])


def test_set_reaches_every_depth():
    config = parse_config(
        TEXT,
        [
            "name=other",
            "train.rounds=3",
            "model.start=random",
            "model.architecture.d_model=24",
            "data.thin={ann: 0.5}",
            "faults=[{round: 1, clients: 2}]",
            "privacy.delta=1e-6",
            "data.salt=a=b",
        ],
    )
    assert (config.name, config.train.rounds, config.data.salt) == ("other", 3, "a=b")
    assert config.model.architecture is not None
    assert (config.model.architecture.d_model, config.model.architecture.heads) == (24, 4)
    assert config.data.thin == {"ann": 0.5}
    assert (config.faults[0].stage, config.faults[0].clients) == ("upload", 2)
    assert config.privacy.delta == 1e-6


def test_the_last_set_of_a_key_holds():
    assert parse_config(TEXT, ["train.rounds=3", "train.rounds=4"]).train.rounds == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.rounds", "--set train.rounds: must look like section.key=value"),
        ("=3", "must look like section.key=value"),
        ("", "must look like section.key=value"),
        ("train.rounds=[", "--set train.rounds: the value is not valid YAML"),
        ("name.first=3", "--set name.first: `name` is a value, not a section"),
        ("train.round=3", "train.round: unknown key"),
        ("a.b.c=3", "a: unknown key"),
        ("train.rounds=many", "train.rounds is 'many'"),
        ("train.rounds=", "train.rounds is None"),
        ("train=3", "train is 3"),
        ("secagg.threshold=4", "2t > n + c"),
        ("data.thin={a: 1, a: 2}", "key `a` is said twice"),
    ],
)
def test_a_bad_set_goes_through_the_same_checks(override, message):
    with pytest.raises(ConfigError) as caught:
        parse_config(TEXT, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load_and_round_trip(path):
    config = load_config(path)
    assert config_from_json(config.canonical_json()) == config
    assert config.seed is None


def test_there_are_shipped_configs():
    assert {"quickstart.yaml", "tiny.yaml", "central.yaml"} <= {path.name for path in CONFIGS}


def test_an_unreadable_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no such config; `fedattn init` writes one"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(
        ConfigError, match=r"latin.yaml: cannot be read as UTF-8 text .UnicodeDecode"
    ):
        load_config(tmp_path / "latin.yaml")


def test_canonical_json_does_not_depend_on_order_or_spelling():
    shuffled = {key: BASE[key] for key in reversed(BASE)}
    shuffled["privacy"] = dict(reversed(BASE["privacy"].items()))
    shuffled["privacy"]["epsilon_budget"] = 8  # an integer where a float is meant
    shuffled["train"] = {"rounds": 8}  # a default said aloud
    one, other = config_from_dict(BASE), config_from_dict(shuffled)
    assert one.canonical_json() == other.canonical_json()
    assert one.sha256() == other.sha256()
    assert one.sha256() != parse_config(TEXT, ["train.rounds=9"]).sha256()


def test_canonical_json_is_sorted_and_has_no_spaces():
    text = config_from_dict(BASE).canonical_json()
    again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text == again
    assert text.startswith('{"data":{"assign":"hash","clean":{"english":false,')


@given(
    st.floats(1e-300, 1, exclude_max=False),
    st.floats(1e-9, 1e29),
    st.integers(0, 2**63 - 1) | st.none(),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=5),
)
def test_json_round_trip_is_exact(rate, clip_norm, seed, salt):
    raw = changed(privacy__sampling_rate=rate, privacy__clip_norm=clip_norm, data__salt=salt)
    config = config_from_dict({**raw, "seed": seed})
    assert config_from_json(config.canonical_json()) == config


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "{}"])
def test_json_that_is_no_config_is_refused(text):
    with pytest.raises(ConfigError):
        config_from_json(text)


def test_privacy_is_claimed_without_a_seed_and_with_a_unit_alone():
    assert not parse_config(TEXT, ["seed=1"]).is_private
    none = {"unit": "none", "noise": "none"}
    config: Config = config_from_dict(changed(privacy=none))
    assert not config.is_private


def test_a_threshold_above_what_dropouts_leave_is_refused_with_the_remedy():
    raw = changed(data__clients=40, secagg__threshold=39)
    raw["secagg"]["dropout_share"] = 0.05
    assert "threshold 39 is above the 38 clients that dropout_share 0.05 leaves" in refusal(raw)
    raw["secagg"]["threshold"] = 38
    assert config_from_dict(raw).secagg.threshold == 38


def sums(**changes):
    """A valid client/distributed config with `changes`."""
    made = {
        "privacy": {"unit": "client", "noise": "distributed", "epsilon_budget": 8.0},
        "train": {"local_steps": 1},
        "secagg": {"threshold": 5, "max_colluding": 1},
        "data": {},
    }
    for key, value in changes.items():
        made[key] = {**made[key], **value}
    return changed(**made)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"privacy": {"noise": "local"}}, ["`unit: client` cannot have `noise: local`"]),
        ({"privacy": {"client_sampling": "fixed"}}, ["fixed-size cohorts", "poisson"]),
        ({"privacy": {"client_sampling_seed": 3}}, ["client_sampling_seed", "secret sampling"]),
        ({"privacy": {"unit": "conversation", "client_rate": 0.5}}, ["client_rate below 1"]),
        ({"privacy": {"unit": "conversation"}, "train": {"local_steps": 2}}, ["one DP-SGD step"]),
        ({"train": {"weights": "examples"}}, ["weights", "uniform"]),
        ({"secagg": {"max_colluding": 0}}, ["max_colluding must be at least 1"]),
        ({"privacy": {"epsilon_budget": 21.0}}, ["above 20", "i_know"]),
        ({"privacy": {"noise": "server", "epsilon_budget": {"server": 8.0}}}, ["`outsider` alone"]),
        ({"privacy": {"max_units": 7, "delta": 1e-9}}, ["max_units 7 is below data.clients 8"]),
        (
            {
                "privacy": {"unit": "conversation", "noise": "local"},
                "data": {"assign": "person"},
            },
            ["data.assign: person", "use `assign: hash`"],
        ),
        ({"privacy": {"delta": 1e-4}}, ["delta 0.0001 is above 1/(10 max_units)"]),
        (
            {"privacy": {"client_rate": 0.3}, "secagg": {"threshold": 3}},
            ["threshold 3 is above the 2.28 survivors expected"],
        ),
        (
            {"privacy": {"hypothetical": {"cohort": 10, "population": 5}}},
            ["cohort 10 is above population 5"],
        ),
    ],
)
def test_a_sum_that_cannot_keep_its_promise_is_refused_with_the_remedy(changes, parts):
    message = refusal(sums(**changes))
    for part in parts:
        assert part in message


def test_a_single_budget_holds_against_all_that_the_noise_protects_from():
    made = config_from_dict(sums())
    assert made.privacy.budgets == dict.fromkeys(("outsider", "server", "collusion"), 8.0)
    mapped = config_from_dict(sums(privacy={"epsilon_budget": {"outsider": 4.0}}))
    assert mapped.privacy.budgets == {"outsider": 4.0}
    server = config_from_dict(sums(privacy={"noise": "server"}))
    assert server.privacy.budgets == {"outsider": 8.0}


@pytest.mark.parametrize("noise_multiplier", [1e-31, 1e31])
def test_noise_too_small_or_too_large_to_draw_is_refused(noise_multiplier):
    raw = changed(privacy__clip_norm=1.0, privacy__noise_multiplier=noise_multiplier)
    with pytest.raises(ConfigError, match=r"noise_multiplier \* clip_norm"):
        config_from_dict(raw)


@pytest.mark.parametrize("stage", ["share", "unmask"])
def test_a_fault_at_a_stage_that_arithmetic_skips_is_refused(stage):
    raw = {**BASE, "faults": [{"round": 1, "stage": stage, "clients": 1}]}
    config_from_dict(raw)
    with pytest.raises(ConfigError, match=f"stage {stage} is skipped"):
        config_from_dict({**raw, "secure_aggregation": "arithmetic"})
