"""Every mode of DESIGN section 4's table, from data to audited report: real code, seconds a run."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedattn import cli
from fedattn.audit import AuditResult, audit
from fedattn.config import ROWS, Config, config_from_dict
from fedattn.entries import Abort, AnyBody, Intent, Open, Release
from fedattn.errors import RefusalError
from fedattn.flower.observer import SilentObserver
from fedattn.ledger import read_ledger
from fedattn.privacy.claims import HYPOTHETICAL
from fedattn.privacy.events import round_event
from fedattn.privacy.rows import participations, spends
from fedattn.progress import Live, print_result
from fedattn.randomness import Randomness
from fedattn.report import Report
from fedattn.simulate import Simulation, simulate
from tests.attacks.fleet import Fleet, Play
from tests.federation import conversations, tiny, write

# What `tiny` is changed by, mode by mode; a wide budget, so that rounds decide
WIDE = {"outsider": 200.0}
MODES: dict[str, dict[str, Any]] = {
    "conversation/local": {"privacy": {"epsilon_budget": WIDE}},
    "conversation/distributed": {
        "privacy": {"noise": "distributed", "epsilon_budget": WIDE},
        "train": {"local_steps": 1},
    },
    "conversation/server": {
        "privacy": {"noise": "server", "epsilon_budget": WIDE},
        "train": {"local_steps": 1},
    },
    "client/distributed": {
        "privacy": {"unit": "client", "noise": "distributed", "epsilon_budget": WIDE}
    },
    "client/server": {"privacy": {"unit": "client", "noise": "server", "epsilon_budget": WIDE}},
    "none": {"privacy": {"unit": "none", "noise": "none", "epsilon_budget": None}},
}
SUMMED = [mode for mode in MODES if mode.endswith(("distributed", "server"))]
FINITE = {  # rows that the noise of a mode holds against
    "local": set(ROWS),
    "distributed": set(ROWS),
    "server": {"outsider"},
    "none": set[str](),
}


def made(path: Path, mode: str, **changes: Any) -> Config:
    """`tiny` in this mode."""
    sections = {**MODES[mode]}
    for key, value in changes.items():
        merged = isinstance(value, dict) and isinstance(sections.get(key, {}), dict)
        sections[key] = {**sections.get(key, {}), **value} if merged else value
    return tiny(path, **sections)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", conversations())


class Run:
    """A finished simulation, and what its ledger says."""

    def __init__(self, config: Config, folder: Path, **keywords: Any) -> None:
        self.config, self.path = config, folder / "run"
        self.path.mkdir()
        self.result: Simulation = simulate(config, self.path, **keywords)
        self.report: Report = self.result.report
        entries = read_ledger(self.path / "ledger.jsonl")
        self.kinds = [entry.kind for entry in entries]
        self._bodies: list[AnyBody] = [entry.body for entry in entries]

    def bodies(self, kind: Any) -> list[Any]:
        return [body for body in self._bodies if isinstance(body, kind)]

    def audit(self) -> AuditResult:
        return audit(
            self.path,
            server_key=self.result.server_fingerprint,
            roster=self.path / "roster.txt",
            authority=self.path / "authority" / "authority.pem",
        )


def plain(epsilons: Any) -> dict[str, float]:
    return {row: math.inf if value == "infinity" else value for row, value in epsilons.items()}


def assert_one_epsilon(run: Run) -> dict[str, float]:
    """Accounting, report, audit and `--json` agree on every row; the audit finds nothing."""
    checked = run.audit()
    assert checked.ok, [finding for finding in checked.findings if not finding.ok]
    events = [body.priced for body in run.bodies(Intent)]
    counted = {row: cost.epsilon for row, cost in spends(run.config, events).items()}
    stored = json.loads((run.path / "report.json").read_bytes())
    shown = run.result.to_json()
    assert plain(stored["totals"]["epsilons"]) == counted
    assert plain(shown["epsilons"]) == counted
    assert plain(checked.to_json()["epsilons"]) == counted
    if run.config.seed is None:
        assert {claim.row: claim.epsilon for claim in run.report.claims} == counted
    for headline in (stored["totals"]["epsilon"], shown["epsilon"], checked.to_json()["epsilon"]):
        assert plain({"outsider": headline})["outsider"] == counted["outsider"]
    return dict(counted)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_to_its_end_through_dropouts(data, tmp_path, mode):
    """One of four may be lost, two may not: that round is spent and changes nothing."""
    faults = [
        {"round": 1, "stage": "upload", "clients": 1},
        {"round": 2, "stage": "upload", "clients": 2},
    ]
    run = Run(made(data, mode, train={"rounds": 3}, faults=faults), tmp_path)
    assert run.kinds == ["open", *["intent", "release", "intent", "abort"], "intent", "release",
                         "close"]  # fmt: skip
    assert (run.report.outcome, run.result.exit_code) == ("completed", 0)
    assert [body.survivors for body in run.bodies(Release)] == [3, 4]
    assert [(body.round, body.stage, body.reason) for body in run.bodies(Abort)] == [
        (2, "upload", "threshold")
    ]
    first, last = run.bodies(Release)
    assert first.model_before != first.model_after == last.model_before != last.model_after
    counted = assert_one_epsilon(run)
    finite = {row for row, epsilon in counted.items() if math.isfinite(epsilon)}
    assert finite == FINITE[run.config.privacy.noise]
    assert len(run.bodies(Intent)) == 3  # the aborted round is priced as the others are
    three = spends(run.config, [round_event(run.config, run.bodies(Open)[0].dimension)] * 3)
    assert counted == {row: cost.epsilon for row, cost in three.items()}


@pytest.mark.parametrize("mode", SUMMED)
def test_the_round_that_would_pass_a_budget_is_not_started(data, tmp_path, mode):
    """Of each adversary that has one; the model and the report of the rounds before are there."""
    rows = ["outsider"] if mode.endswith("server") else ["outsider", "collusion", "unmasked"]
    config = made(data, mode, train={"rounds": 9})
    dimension = Run(made(data, mode, train={"rounds": 1}), tmp_path).bodies(Open)[0].dimension
    three = spends(config, [round_event(config, dimension)] * 3)
    for row in rows:
        folder = tmp_path / row
        folder.mkdir()
        budget = {**WIDE, row: 0.99 * three[row].epsilon}
        notes = Notes()
        stopped = made(data, mode, train={"rounds": 9}, privacy={"epsilon_budget": budget})
        run = Run(stopped, folder, observer=notes)
        assert (run.report.outcome, run.result.exit_code) == ("budget", 3)
        assert run.kinds == ["open", *["intent", "release"] * 2, "close"]
        assert any(f"round 3 would pass epsilon {budget[row]:g} against {row}" in n for n in notes)
        assert assert_one_epsilon(run)[row] <= budget[row]
        assert (run.path / "model.safetensors").exists()
        assert (run.path / "report.html").exists()


class Notes(SilentObserver, list[str]):
    """What a run says aside."""

    def note(self, text: str) -> None:
        self.append(text)


# ---- sampled clients

RATE = 0.55


def sampled(data: Path, mode: str = "client/distributed", **changes: Any) -> Config:
    privacy = {"client_rate": RATE, "max_participations": 4, **changes.pop("privacy", {})}
    return made(
        data,
        mode,
        data={"clients": 16},
        train={"rounds": 5, "local_steps": 1},
        privacy=privacy,
        secagg={"threshold": 5, "max_colluding": 1, "dropout_share": 0.2},
        **changes,
    )


def sizes_of(seed: int) -> list[int]:
    """How many of sixteen clients a server of this seed draws in five rounds."""
    stream = Randomness.seeded(seed, "server").child("cohorts")
    rounds = [stream.child(str(number)).words(16) for number in range(1, 6)]
    return [int((words < int(RATE * 2.0**64)).sum()) for words in rounds]


@pytest.mark.parametrize("mode", ["client/distributed", "client/server"])
def test_a_sample_that_is_too_small_is_skipped_logged_and_costs_nothing(data, tmp_path, mode):
    """In the second round: the rounds before and after are as they would have been."""
    seed = next(
        seed
        for seed in range(10_000)
        if [size >= 5 for size in sizes_of(seed)] == [True, False, True, True, True]
    )
    sent: Counter[str] = Counter()

    def tap(message: Any) -> None:
        sent[message.metadata.group_id] += 1

    notes = Notes()
    run = Run(sampled(data, mode, seed=seed), tmp_path, taps=[tap], observer=notes)
    released = ["intent", "release"]
    assert run.kinds == ["open", *released, "skip", *released * 3, "close"]
    sizes = sizes_of(seed)
    assert [body.cohort for body in run.bodies(Intent)] == [sizes[0], *sizes[2:]]
    assert "2" not in sent
    assert all(sent[str(number)] > 0 for number in (1, 3, 4, 5))
    assert any("round 2 skipped" in note for note in notes)
    totals = run.report.totals
    assert (totals.rounds_intended, totals.rounds_skipped) == (4, 1)
    counted = assert_one_epsilon(run)
    four = spends(run.config, [round_event(run.config, run.bodies(Open)[0].dimension)] * 4)
    assert counted == {row: cost.epsilon for row, cost in four.items()}
    for i in range(16):
        path = run.path / "devices" / f"client-{i + 1}" / "spend.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rounds = [json.loads(line)["body"]["round"] for line in lines[1:]]
        assert 2 not in rounds
        key = run.bodies(Open)[0].roster[i]
        asked = [body.round for body in run.bodies(Intent) if key in body.roster]
        assert sorted(set(rounds)) == asked


def test_an_unseeded_sampled_run_is_audited_and_nobody_is_asked_too_often(data, tmp_path):
    run = Run(sampled(data, privacy={"max_participations": 2}), tmp_path)
    assert_one_epsilon(run)
    asked = Counter(key for body in run.bodies(Intent) for key in body.roster)
    assert max(asked.values()) <= participations(run.config) == 2


def test_where_all_are_asked_the_last_participation_ends_the_run(data, tmp_path):
    """As a budget does: no round is skipped, and the audit finds nothing wrong."""
    changes = {"max_participations": 2}
    run = Run(made(data, "client/distributed", train={"rounds": 4}, privacy=changes), tmp_path)
    assert run.kinds == ["open", *["intent", "release"] * 2, "close"]
    assert (run.report.outcome, run.result.exit_code) == ("budget", 3)
    assert_one_epsilon(run)


# ---- the device counts its own participations


CAPPED = {"privacy": {**MODES["client/distributed"]["privacy"], "max_participations": 1}}


def test_a_device_that_took_part_as_often_as_it_may_declines_whoever_asks(tmp_path):
    fleet = Fleet(tmp_path, **CAPPED, train={"rounds": 3})
    play = Play(fleet)
    for stage in ("advertise", "share", "upload"):
        play.stage(stage)
    assert fleet.spent(1) == ["accepted", "spent"]
    again = fleet.instruction(2)
    for restarted in (False, True):
        if restarted:
            fleet.restart()
        reply = fleet.say(1, "advertise", instruction=again.document)
        assert reply == "participations"
    assert fleet.spent(1) == ["accepted", "spent"]


def test_two_rounds_opened_together_are_still_one_participation(tmp_path):
    """A server that asks for two before it lets the device train in either."""
    fleet = Fleet(tmp_path, **CAPPED, train={"rounds": 3})
    plays = [Play(fleet, fleet.instruction(number)) for number in (1, 2)]
    for i in (1, 2, 3, 4):
        for play in plays:
            reply = fleet.say(i, "advertise", **play.fields("advertise", i))
            assert isinstance(reply, bytes), reply
    device = fleet.devices[0]
    device.train(plays[0].instruction, fleet.vector)
    with pytest.raises(RefusalError) as refused:
        device.train(plays[1].instruction, fleet.vector)
    assert refused.value.rule == "participations"
    assert fleet.spent(1) == ["accepted", "accepted", "spent"]


# ---- runs that pretend


PRETENDS = {"cohort": 500, "population": 10_000}


@pytest.fixture
def hypothetical(data):
    return made(
        data,
        "client/distributed",
        privacy={"hypothetical": PRETENDS, "epsilon_budget": {"outsider": 20.0}},
        train={"rounds": 2},
    )


def test_a_hypothetical_run_says_so_in_every_output(hypothetical, data, tmp_path, capsys):
    run = Run(hypothetical, tmp_path)
    real = assert_one_epsilon(run)
    checked, shown = run.audit().to_json(), run.result.to_json()
    stored = json.loads((run.path / "report.json").read_bytes())
    pretended = stored["hypothetical"]["epsilons"]
    assert shown["hypothetical_epsilons"] == checked["hypothetical_epsilons"] == pretended
    assert 0 < pretended["outsider"] < 20.0 < real["outsider"] == math.inf
    assert stored["totals"]["epsilon"] == "infinity"  # the headline is what took place
    for notes in (stored["notes"], shown["notes"], checked["labels"]):
        assert any(note.startswith(f"{HYPOTHETICAL}: noise as if 500 of 10000") for note in notes)
    page = (run.path / "report.html").read_text()
    assert re.search(rf"<title>{HYPOTHETICAL}", page)
    assert re.search(rf"<h1>.*{HYPOTHETICAL}", page)
    print_result(run.result)
    panel = " ".join(capsys.readouterr().out.split())
    assert f"{HYPOTHETICAL} fedattn: test" in panel
    assert "real epsilon" in panel
    with Live(hypothetical) as live:
        live.note("")
        assert HYPOTHETICAL in live._spent()
        assert "real" in live._spent()
    assert HYPOTHETICAL in capsys.readouterr().err


def test_the_command_labels_a_hypothetical_run_in_its_json(hypothetical, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(hypothetical.canonical_json())
    done = CliRunner().invoke(
        cli.app, ["simulate", str(path), "--out", str(tmp_path / "run"), "--json"]
    )
    assert done.exit_code == 0, done.output
    shown = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert any(note.startswith(HYPOTHETICAL) for note in shown["notes"])
    assert shown["epsilon"] == "infinity"
    assert shown["hypothetical_epsilons"]["outsider"] < 20.0


def test_a_run_that_pretends_nothing_is_not_called_so(data, tmp_path, capsys):
    run = Run(made(data, "client/distributed", train={"rounds": 1}), tmp_path)
    print_result(run.result)
    stored = (run.path / "report.json").read_text() + (run.path / "report.html").read_text()
    assert HYPOTHETICAL not in stored + capsys.readouterr().out + str(run.result.to_json())
    assert run.result.to_json()["hypothetical_epsilons"] is None


def test_a_hypothetical_budget_ends_a_run_by_what_it_pretends(hypothetical, tmp_path):
    run = Run(hypothetical, tmp_path)
    spent = run.report.hypothetical
    assert spent is not None
    raw = hypothetical.model_dump(mode="json")
    raw["train"]["rounds"] = 9
    raw["privacy"]["epsilon_budget"] = {"outsider": spent.epsilons["outsider"] * 1.001}
    folder = tmp_path / "stopped"
    folder.mkdir()
    stopped = Run(config_from_dict(raw), folder)
    assert (stopped.report.outcome, stopped.result.exit_code) == ("budget", 3)
    assert len(stopped.bodies(Intent)) == 2
    assert stopped.audit().ok
