"""A ledger cannot keep its auditor busy: whatever numbers it states, the audit ends in findings."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from math import erfc, exp, sqrt
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fedattn import secagg
from fedattn.audit import audit
from fedattn.audit.ledger_checks import _is_part, _places
from fedattn.config import MOST_CLIENTS, MOST_STEPS, Config, config_from_dict
from fedattn.errors import ConfigError, PrivacyError, RunError
from fedattn.privacy import accountants, rows
from fedattn.privacy.accountants import LEAST_NOISE, LEAST_RATE, MOST_NOISE, spend
from fedattn.privacy.events import PoissonGaussian, event_from_dict, round_event
from tests.run_builder import DEVICES, PIN, PRETENDS, Run, config, failed, sampled, summed

MODES = {"local": config(), "summed": summed(), "server": summed(noise="server")}


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """A guard against hanging: what it would interrupt takes a few seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError("still busy after two minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("wholes")
    return {mode: Run(base / mode, config=made).write() for mode, made in MODES.items()}


def with_files_of(good: Path, forged: Path) -> Path:
    for name in ("report.json", "report.sig", "report.html"):
        shutil.copy(good / name, forged)
    return forged


EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("local", {"sampling_rate": 1e-300}),
    ("local", {"sampling_rate": 1e-300, "noise_multiplier": 0.03}),
    ("local", {"sampling_rate": 1 - 2**-53, "noise_multiplier": 0.2}),
    ("local", {"noise_multiplier": 1e-300}),
    ("local", {"noise_multiplier": 1e8}),
    ("local", {"noise_multiplier": 1e300}),
    ("local", {"steps": 10**7, "noise_multiplier": 1e6}),
    ("local", {"steps": 10**400}),
    ("summed", {"record_rate": 1e-300, "client_rate": 1e-300}),
    ("summed", {"l2": 1e-300, "released_variance": 1e300}),
    ("summed", {"l1": 1e300, "share_variance": 1e-300}),
    ("summed", {"coordinates": 10**400, "most_clients": 10**400}),
    ("server", {"l2": 1e-300, "variance": 1e300}),
    ("server", {"l2": 1e300, "variance": 1e-300}),
    ("server", {"record_rate": 1e-300}),
]


@pytest.mark.parametrize(("mode", "event"), EVENTS)
def test_an_event_that_no_run_has_ends_in_findings(
    wholes: dict[str, Path], tmp_path: Path, mode: str, event: dict[str, Any]
) -> None:
    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "event": {**body["event"], **event}} if kind == "intent" else body

    forged = Run(tmp_path / "run", config=MODES[mode], body=forge).write(report=False)
    with pytest.raises(RunError, match="was closed but has no report"):
        audit(forged)
    result = audit(with_files_of(wholes[mode], forged), server_key=PIN)
    assert {"events", "rounds", "instructions"} <= failed(result)


def test_mechanisms_without_number_are_not_priced(tmp_path: Path, wholes: dict[str, Path]) -> None:
    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind != "intent":
            return body
        return {**body, "event": {**body["event"], "sampling_rate": 0.1 + 1e-6 * body["round"]}}

    forged = Run(tmp_path / "run", body=forge, more_rounds=300).write(report=False)
    result = audit(with_files_of(wholes["local"], forged), server_key=PIN)
    assert {"events", "epsilon", "rounds", "claims", "budget and delta"} <= failed(result)
    assert result.epsilon is None
    assert any("304 mechanisms" in finding.detail for finding in result.findings)


def other(config: Config, **sections: dict[str, Any]) -> dict[str, Any]:
    raw = config.model_dump(mode="json")
    for name, keys in sections.items():
        raw[name].update(keys)
    return raw


FAR = 10**400
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("train.rounds", other(config(), train={"rounds": FAR})),
    ("train.rounds", other(config(), train={"rounds": MOST_STEPS, "local_steps": 2})),
    ("train.rounds", other(summed(), train={"rounds": MOST_STEPS + 1})),
    ("train.local_steps", other(config(), train={"local_steps": FAR})),
    ("data.clients", other(config(), data={"clients": MOST_CLIENTS + 1})),
    ("data.clients", other(sampled(), data={"clients": FAR}, privacy={"max_units": FAR})),
    ("privacy.max_units", other(config(), privacy={"max_units": FAR})),
    ("privacy.max_participations", other(config(), privacy={"max_participations": FAR})),
    (
        "privacy.hypothetical.population",
        other(sampled(), privacy={"hypothetical": {"cohort": 5, "population": MOST_CLIENTS + 1}}),
    ),
    ("secagg.threshold", other(config(), secagg={"threshold": FAR})),
]


@pytest.mark.parametrize(("key", "raw"), CONFIGS)
def test_a_config_that_no_audit_could_price_is_refused_by_key(
    wholes: dict[str, Path], tmp_path: Path, key: str, raw: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=key):
        config_from_dict(raw)

    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "config": raw} if kind == "open" else body

    forged = Run(tmp_path / "run", body=forge).write(report=False)
    result = audit(with_files_of(wholes["local"], forged), server_key=PIN)
    assert {"config", "epsilon", "rounds", "claims"} <= failed(result)
    assert result.epsilon is None


def test_the_largest_that_a_config_may_state_is_priced() -> None:
    raw = other(config(noise_multiplier=100.0), train={"rounds": MOST_STEPS // 10})
    raw["train"]["local_steps"] = 10
    most = config_from_dict(raw)
    assert rows.spends(most, [round_event(most, 10)])["outsider"].epsilon > 0
    pretends = {**PRETENDS, "population": MOST_CLIENTS}
    crowd = rows.hypothetical_spends(sampled(hypothetical=pretends), 10, 4)
    assert crowd is not None
    assert crowd["outsider"].epsilon > 0


@pytest.mark.parametrize("dimension", [10**12, 10**400])
def test_parameters_without_number_take_no_memory(
    wholes: dict[str, Path], tmp_path: Path, dimension: int
) -> None:
    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "dimension": dimension} if kind == "open" else body

    forged = Run(tmp_path / "run", config=summed(), body=forge).write(report=False)
    result = audit(with_files_of(wholes["summed"], forged), server_key=PIN)
    assert "events" in failed(result)


def test_bounds_of_the_accountants_never_understate() -> None:
    def cost(**event: float) -> float:
        made = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 3, **event}
        return spend([event_from_dict({"kind": "poisson_gaussian", **made})], 1e-5).epsilon

    assert cost(sampling_rate=1e-300) == cost(sampling_rate=LEAST_RATE)
    assert cost(noise_multiplier=1e300) == cost(noise_multiplier=MOST_NOISE)
    for event in ({"noise_multiplier": LEAST_NOISE / 2}, {"steps": MOST_STEPS + 1}):
        with pytest.raises(PrivacyError):
            cost(**event)
    with pytest.raises(PrivacyError, match="delta"):
        spend([PoissonGaussian(0.1, 1.0, 3)], 5e-324)


def test_a_loss_that_reaches_far_is_priced_from_above() -> None:
    # one step without sampling has a closed form: the Gaussian mechanism's own delta
    def delta(epsilon: float, sigma: float) -> float:
        def below(x: float) -> float:
            return erfc(-x / sqrt(2)) / 2

        half, shift = 1 / (2 * sigma), epsilon * sigma
        return below(half - shift) - exp(epsilon) * below(-half - shift)

    for sigma in (0.2, 0.5, 2.0):
        epsilon = spend([PoissonGaussian(1.0, sigma, 1)], 1e-5).epsilon
        assert delta(epsilon, sigma) <= 1e-5 <= delta(0.97 * epsilon, sigma)


def test_a_refusal_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Refusing(accountants.PrvAccountant):
        def bounds(self, events: Any, delta: float) -> Any:
            asked.append(events)
            raise PrivacyError("cannot")

    monkeypatch.setattr(accountants, "PrvAccountant", Refusing)
    for _ in range(3):
        with pytest.raises(PrivacyError, match="cannot"):
            spend([PoissonGaussian(0.123, 1.234, 5)], 1e-5)
    assert len(asked) == 1


def test_confirmations_are_tried_once_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind != "release":
            return body
        return {**body, "cosignatures": ["0" * 128] * 3000 + body["cosignatures"]}

    tried, real = [], secagg.verify_confirmation

    def counted(*parts: bytes) -> bool:
        tried.append(parts[0])
        return real(*parts)

    monkeypatch.setattr(secagg, "verify_confirmation", counted)
    run = Run(tmp_path / "run", body=forge).write()
    assert "co-signatures" in failed(audit(run, server_key=PIN))
    assert 0 < len(tried) <= 2 * len(DEVICES)


def test_a_roster_is_a_part_in_order_and_once() -> None:
    whole = _places(["a", "b", "c"])
    assert all(_is_part(part, whole) for part in ([], ["a", "c"], ["a", "b", "c"]))
    assert not any(_is_part(part, whole) for part in (["b", "a"], ["a", "a"], ["d"], ["a", "d"]))
