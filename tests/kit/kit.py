"""Federations made by the real command, and what its refusals say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedattn import cli
from fedattn.errors import FedattnError


def fedattn(*arguments, answer=""):
    """`fedattn federation ...`; what it printed. A FedattnError is raised as it is."""
    words = ["federation", *map(str, arguments)]
    result = CliRunner().invoke(cli.app, words, input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def refused(message, *arguments, answer=""):
    """The command ends with exit code 2 and says `message`; all that it says."""
    with pytest.raises(FedattnError) as caught:
        fedattn(*arguments, answer=answer)
    assert caught.value.exit_code == 2
    assert message in str(caught.value)
    return str(caught.value)


@dataclass
class Kit:
    """One party's federation in `root`, and the devices that join it."""

    root: Path

    @property
    def authority(self):
        return self.root / "fed" / "authority"

    @property
    def server(self):
        return self.root / "fed" / "server"

    @property
    def invitation(self):
        return self.root / "fed" / "invitation"

    @property
    def data(self):
        path = self.root / "conversations.jsonl"
        path.touch()
        return path

    def join(self, name, *more, folder=None):
        folder = folder or self.root / f"device-{name}"
        arguments = ["--invitation", self.invitation, "--name", name, "--data", self.data]
        fedattn("join", folder, *arguments, *more)
        return folder

    def approve(self, folder):
        fedattn("approve", self.authority, folder / "request.json", "--yes")
        return self.issued(facts(folder)["device"])

    def issued(self, name):
        return self.authority / "issued" / f"{name}.json"

    def member(self, name):
        """A device that joined, was approved, and is admitted."""
        folder = self.join(name)
        approval = self.approve(folder)
        fedattn("join", folder, "--approval", approval)
        fedattn("admit", self.server, approval)
        return folder


def facts(folder):
    """What `show` says of a folder."""
    return json.loads(fedattn("show", folder, "--json"))["facts"]


def members(folder):
    """Name and status of those whom `show` lists."""
    shown = json.loads(fedattn("show", folder, "--json"))["members"]
    return {member["name"]: member["status"] for member in shown}
