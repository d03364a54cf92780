import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fedattn import cli
from fedattn.errors import ConfigError, RunError
from fedattn.ledger import read_ledger
from tests.federation import conversations, tiny, write

runner = CliRunner()


def fedattn(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fedattn.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def config_path(tmp_path):
    data = write(tmp_path / "data.jsonl", conversations())
    path = tmp_path / "config.yaml"
    path.write_text(tiny(data, train={"rounds": 1}).canonical_json())
    return path


def test_json_goes_to_stdout_alone_and_audit_accepts_the_run(config_path, tmp_path):
    done = fedattn("simulate", config_path, "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    for key in ("run_dir", "rounds", "epsilon", "delta", "bpb_before", "bpb_after", "wall_s"):
        assert key in shown
    assert "round 1" in done.stderr
    checked = fedattn("audit", shown["run_dir"], "--json", "--server-key", shown["server_key"])
    assert checked.returncode == 0, checked.stdout
    verdict = json.loads(checked.stdout)
    assert verdict["ok"] is True
    assert all(finding["ok"] for finding in verdict["findings"])
    ledger = Path(shown["run_dir"]) / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"threshold":3', '"threshold":2'))
    assert fedattn("audit", shown["run_dir"]).returncode == 1


def test_an_existing_out_is_refused_with_exit_code_2(config_path, tmp_path):
    (tmp_path / "run").mkdir()
    done = fedattn("simulate", config_path, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "exists; choose another --out" in done.stderr


def test_a_wrong_key_is_named_with_its_remedy_and_exit_code_2(config_path):
    done = fedattn("simulate", config_path, "--set", "train.round=3", "--dry-run")
    assert done.returncode == 2
    assert "train.round: unknown key; remove it or correct its spelling" in done.stderr
    assert "Traceback" not in done.stderr


def test_audit_of_nothing_is_bad_input(tmp_path):
    done = fedattn("audit", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_dry_run_prices_every_adversary_and_makes_no_directory(config_path, tmp_path):
    before = set(tmp_path.iterdir())
    result = runner.invoke(cli.app, ["simulate", str(config_path), "--dry-run"])
    assert result.exit_code == 0
    for row in ("outsider", "server", "collusion", "unmasked"):
        assert row in result.stdout
    assert set(tmp_path.iterdir()) == before


def test_plan_and_dry_run_price_alike_in_one_json_object(config_path):
    planned = runner.invoke(cli.app, ["plan", str(config_path), "--no-probe", "--json"])
    dry = runner.invoke(cli.app, ["simulate", str(config_path), "--dry-run", "--json"])
    assert planned.exit_code == dry.exit_code == 0
    told = json.loads(planned.stdout)
    assert told == json.loads(dry.stdout)
    assert set(told["epsilon"]) == {"outsider", "server", "collusion", "unmasked"}
    assert told["prediction"] is None


def test_plan_finds_the_noise_for_an_epsilon_and_names_whom_it_is_for(config_path):
    arguments = ["plan", str(config_path), "--epsilon", "3", "--against", "server", "--json"]
    told = json.loads(runner.invoke(cli.app, arguments).stdout)
    assert told["epsilon"]["server"] <= 3.0
    assert told["calibration"]["against"] == ["server"]
    assert told["noise_multiplier"] != told["calibration"]["configured"]
    assert told["prediction"]["seconds_per_run"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "3", "--against", "everyone"], "must be one of outsider, server"),
        (["--against", "server"], "give both"),
        (["--epsilon", "-1"], "must be above 0"),
        (["--set", "privacy.epsilon_budget=0.01"], "nothing would be trained"),
        (["--set", "train.weights=examples"], "use `weights: uniform`"),
    ],
)
def test_plan_refuses_with_the_remedy_and_exit_code_2(config_path, arguments, message):
    done = fedattn("plan", config_path, "--no-probe", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_help_has_brackets_which_the_terminal_would_take_for_markup():
    waiting, seen = [get_command(cli.app)], 0
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for text in [command.help, *(getattr(each, "help", "") for each in command.params)]:
            seen += 1
            assert "[" not in (text or ""), (command.name, text)
    assert seen > 100


def test_help_of_plan_imports_nothing_heavy():
    code = (
        "import sys; from fedattn.cli import app\n"
        "try:\n    app(['plan', '--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'flwr', 'opacus', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--against" in done.stdout


def test_init_writes_a_config_that_is_valid_and_is_never_overwritten(tmp_path):
    path = tmp_path / "mine.yaml"
    data = write(tmp_path / "mine.jsonl", conversations())
    assert runner.invoke(cli.app, ["init", str(path), "--data", str(data)]).exit_code == 0
    dry = runner.invoke(cli.app, ["simulate", str(path), "--dry-run"])
    assert dry.exit_code == 0, dry.output
    looked = runner.invoke(cli.app, ["data", "inspect", str(path), "--json"])
    assert json.loads(looked.stdout)["kept"] == len(conversations())
    again = runner.invoke(cli.app, ["init", str(path)])
    assert isinstance(again.exception, ConfigError)


def test_keys_are_made_once_readable_by_their_owner_alone(tmp_path):
    path = tmp_path / "server.pem"
    made = runner.invoke(cli.app, ["keys", "new", str(path)])
    assert path.stat().st_mode & 0o077 == 0
    assert runner.invoke(cli.app, ["keys", "show", str(path)]).stdout == made.stdout
    assert isinstance(runner.invoke(cli.app, ["keys", "new", str(path)]).exception, RunError)


def test_data_inspect_shows_counts_but_no_text(config_path):
    result = runner.invoke(cli.app, ["data", "inspect", str(config_path)])
    assert result.exit_code == 0
    assert "red" not in result.stdout.split()


def test_chat_answers_and_ends_at_an_empty_line(config_path, tmp_path):
    run_dir = tmp_path / "run"
    assert fedattn("simulate", config_path, "--out", run_dir, "--json").returncode == 0
    talk = subprocess.run(
        [sys.executable, "-m", "fedattn.cli", "chat", str(run_dir)],
        input="hello\n\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert talk.returncode == 0, talk.stderr
    assert "it " in talk.stdout


def test_chat_with_no_run_is_bad_input(tmp_path):
    assert fedattn("chat", tmp_path / "nowhere").returncode == 2


def test_bad_usage_is_bad_input(tmp_path):
    assert fedattn("simulate").returncode == 2
    assert fedattn("no-such-command").returncode == 2
    assert fedattn("audit", tmp_path, "--no-such-option").returncode == 2
    assert fedattn("--help").returncode == 0


@pytest.mark.parametrize("end", [KeyboardInterrupt, click.Abort])
def test_an_interrupt_promises_nothing_of_a_ledger(end, monkeypatch, capsys):
    def ended(**_):
        raise end

    monkeypatch.setattr(cli, "app", ended)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_second_interrupt_aborts_at_once_with_the_ledger_intact(config_path, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["simulate", str(config_path), "--out", str(run_dir)]
    arguments += ["--set", "train.rounds=1", "--set", "train.local_steps=100000"]
    arguments += ["--set", "privacy.noise_multiplier=300.0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedattn.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ledger, deadline = run_dir / "ledger.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (
        ledger.exists() and b"intent" in ledger.read_bytes()
    ):
        time.sleep(0.1)
    for _ in range(2):
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this round" in err
    assert [entry.kind for entry in read_ledger(ledger)] == ["open", "intent", "abort", "close"]
