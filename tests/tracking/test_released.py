"""Only what a run releases reaches a tracker: an allowlist, field by field."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedattn.config import ROWS, load_config
from fedattn.flower.observer import RoundSummary
from fedattn.tracking.released import (
    KEYS,
    MEANINGS,
    PARTICIPATION,
    config_values,
    round_values,
    start_values,
)
from tests.federation import tiny

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs").glob("*.yaml")
    if path.stem != "pretrain"  # of another kind
)
CONFIG = tiny(Path("chats.jsonl"))
SAMPLED = load_config(Path(__file__).parents[2] / "configs" / "cross_device.yaml", [])


@dataclasses.dataclass(frozen=True)
class Indiscreet(RoundSummary):
    """A summary that has come to hold what must not leave a device."""

    training_loss: float = 1.25
    update_norms: tuple[float, ...] = (0.5, 0.75)
    last_words: str = "see you at nine"


epsilon = st.floats(0, allow_nan=False)
by_row = st.fixed_dictionaries(dict.fromkeys(ROWS, epsilon))
summaries = st.builds(
    Indiscreet,
    round=st.integers(1, 10**6),
    is_released=st.booleans(),
    cohort=st.integers(0, 10**6),
    survivors=st.integers(0, 10**6),
    epsilons=by_row,
    hypothetical=st.none() | by_row,
    validation_bpb=st.none() | st.floats(0, 16),
    training_loss=st.floats(),
    update_norms=st.tuples(st.floats()),
    last_words=st.text(),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(summaries, st.sampled_from([CONFIG, SAMPLED]))
def test_a_private_quantity_in_a_summary_changes_nothing_that_is_logged(summary, config):
    public = {each.name: getattr(summary, each.name) for each in dataclasses.fields(RoundSummary)}
    values = round_values(summary, config)
    assert values == round_values(RoundSummary(**public), config)
    assert values.keys() <= KEYS
    assert all(isinstance(value, float | int) for value in values.values())


def test_what_is_logged_is_what_the_page_documents():
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text("utf-8")
    cells = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")}
    named = {key.strip(" `") for cell in cells for key in cell.split(",")}
    expanded = {key.replace("ROW", row) if "ROW" in key else key for key in named for row in ROWS}
    assert expanded == KEYS


def summary(**changes):
    epsilons = dict.fromkeys(ROWS, 2.0)
    return dataclasses.replace(RoundSummary(3, True, 5, 4, epsilons, None, 2.5), **changes)


def test_a_round_is_logged_with_who_took_part_and_what_it_cost():
    assert round_values(summary(), CONFIG) == {
        "round/released": 1,
        "round/cohort": 5,
        "round/survivors": 4,
        "round/dropouts": 1,
        **{f"epsilon/{row}": 2.0 for row in ROWS},
        "bpb/validation": 2.5,
    }


def test_where_clients_are_sampled_in_secret_no_size_of_a_cohort_is_logged():
    """The outsider's epsilon is amplified by not knowing who took part, and how many tells."""
    assert SAMPLED.privacy.client_rate < 1
    assert not round_values(summary(), SAMPLED).keys() & set(PARTICIPATION)
    one, other = summary(cohort=9, survivors=7), summary(cohort=200, survivors=200)
    assert round_values(one, SAMPLED) == round_values(other, SAMPLED)


def test_an_aborted_round_says_nothing_of_survivors_and_is_spent_all_the_same():
    values = round_values(summary(is_released=False, survivors=0, validation_bpb=None), CONFIG)
    assert values["round/released"] == 0
    assert values["epsilon/outsider"] == 2.0
    assert not {"round/survivors", "round/dropouts", "bpb/validation"} & values.keys()


def test_infinity_stays_infinite_and_pretended_epsilons_have_keys_of_their_own():
    pretended = dict.fromkeys(ROWS, 8.0)
    values = round_values(
        summary(epsilons=dict.fromkeys(ROWS, math.inf), hypothetical=pretended), CONFIG
    )
    assert all(values[f"epsilon/{row}"] == math.inf for row in ROWS)
    assert all(values[f"epsilon_hypothetical/{row}"] == 8.0 for row in ROWS)
    assert all("HYPOTHETICAL" in MEANINGS[f"epsilon_hypothetical/{row}"] for row in ROWS)


def test_the_start_is_logged_by_its_quality_alone():
    assert start_values(2.5) == {"bpb/test": 2.5}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_logged_flat_and_whole(path):
    config = load_config(path, [])
    values = config_values(config)
    assert values["name"] == config.name
    assert values["privacy.unit"] == config.privacy.unit
    assert values["train.rounds"] == config.train.rounds
    assert all(isinstance(value, str | int | float | bool) for value in values.values())


def test_of_a_path_in_the_config_only_the_last_part_is_logged():
    changed = tiny(Path("/home/ann/private/chats.jsonl")).model_copy(
        update={"server_key": "C:\\keys\\server.pem"}
    )
    values = config_values(changed)
    assert values["data.path"] == "chats.jsonl"
    assert values["server_key"] == "server.pem"
    assert "ann" not in str(values)
