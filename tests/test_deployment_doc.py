"""docs/deployment.md is true to the code: its commands are ones, its messages are the code's."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from tests.ops_files import ROOT, parsed

TEXT = (ROOT / "docs/deployment.md").read_text("utf-8")
# what Flower, OpenSSL and torch say
FOREIGN = {
    "Exit Code: 305 ... Failed to activate SuperNode",
    "certificate verify failed",
    "could not create a primitive",
}


def commands() -> list[str]:
    """Every whole fedattn command in the page, in its blocks and its text."""
    blocks = "".join(re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"fedattn (?:federation|simulate|audit|plan) [^\n#]*", blocks)
    return sorted(
        {*found, *re.findall(r"`(fedattn (?:federation|plan|simulate) [^`]* [^`]*)`", TEXT)}
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_page_is_one(command):
    [_, *argv] = shlex.split(command)
    path, _ = parsed(argv)
    assert path


def recipes() -> list[str]:
    """The messages in the first column of the table of failures."""
    table = TEXT.split("## When something fails")[1].split("**After a kill**")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[1])]


def literals() -> list[str]:
    """Every piece of text in the code, f-strings in their parts, neighbours joined."""
    found = []
    for path in (ROOT / "fedattn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_in_the_recipes_is_one_of_the_code():
    said = [" ".join(each.replace("`", "").split()) for each in literals()]
    assert len(recipes()) > 15
    for message in set(recipes()) - FOREIGN:
        # two words in a row that are the code's (between them stand names and numbers)
        words = message.split()
        rows = [" ".join(words[n : n + 2]) for n in range(max(1, len(words) - 1))]
        assert any(row in each for row in rows for each in said), f"{message!r} is not the code's"
