"""No check of a client is there for show: without any one of them, an attack succeeds."""

import ast
import subprocess
import sys

import pytest

from tests.mutants import ROOT, path_of, without
from tests.mutate_checks import find_all


def test_the_script_finds_every_check_and_can_take_each_one_out():
    mutants = find_all()
    checks = {mutant.check for mutant in mutants}
    assert {"keys.own", "mailbox.proven", "survivors.self", "confirmations.threshold"} <= checks
    assert {"message.signature", "spec.threshold", "replay", "budget", "certified"} <= checks
    assert len(mutants) > 100
    for mutant in mutants:
        source = path_of(mutant.module).read_bytes()
        assert ast.dump(without(mutant, source)) != ast.dump(ast.parse(source)), mutant


@pytest.mark.slow
def test_no_check_of_a_client_can_be_removed_unnoticed():
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutate_checks"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
