"""A SuperLink on 127.0.0.1 and who is registered there; no device runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from fedattn.errors import RunError
from fedattn.federation import admitted, authority
from fedattn.federation.documents import read_any_request, read_approval
from fedattn.federation.server import admit
from fedattn.flower.deployment import nodes, submit
from fedattn.flower.deployment.control import Control, UnreachableError
from fedattn.flower.deployment.folders import ServerFolder, open_server
from fedattn.flower.deployment.processes import Watch, prepare
from tests.deployment.loopback import Loopback
from tests.deployment.shards import config, shards


@pytest.fixture(scope="module")
def federation(home, tmp_path_factory) -> Iterator[Loopback]:
    """Two devices are admitted; the SuperLink runs, and nothing else does."""
    folder = tmp_path_factory.mktemp("superlink")
    made = Loopback(folder, config(home), shards(home, folder, 2), is_started=False)
    with made:
        server = open_server(made.server)
        alone = {"superlink": partial(prepare, server, "superlink")}
        with Watch(server, processes=alone), Control(server) as control:
            control.wait(60)
            yield made


def registered(federation: Loopback) -> tuple[list[str], dict[bytes, int], dict[str, str]]:
    """Register; the lines, what the SuperLink knows then, and nodes.json."""
    server = open_server(federation.server)
    with Control(server) as control:
        lines = nodes.register(server, control)
        return lines, control.nodes(), json.loads((federation.server / "nodes.json").read_text())


def test_a_renewed_device_keeps_its_node(federation):
    _, before, _ = registered(federation)
    assert len(before) == 2
    device, now = federation.devices[0], datetime.now(UTC)
    asked = read_any_request(device / "request.json")
    approval = authority.approve(federation.folder / "authority", asked, at=now)
    kept = federation.server / "admitted" / "device-1.json"
    assert read_approval(approval) != read_approval(kept)
    # (the authority of these tests ends in 30 days, and no certificate ends later)
    admit(federation.server, approval, at=now, force=True)
    assert read_approval(approval) == read_approval(kept)
    lines, after, ids = registered(federation)
    assert lines == []
    assert after == before
    assert len(ids) == 2


def test_a_certificate_that_ended_costs_no_device_its_node(federation, monkeypatch):
    _, before, ids = registered(federation)
    later = datetime.now(UTC) + timedelta(days=29, hours=20)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return later

    monkeypatch.setattr(nodes, "datetime", Later)
    assert admitted(federation.server, at=later) == []
    lines, after, same = registered(federation)
    assert (lines, after, same) == ([], before, ids)


def test_a_device_that_is_revoked_loses_its_node_for_good(federation):
    _, before, _ = registered(federation)
    folder = federation.folder / "authority"
    authority.revoke(folder, "device-2", at=datetime.now(UTC))
    lines, after, ids = registered(federation)
    assert len(after) == len(ids) == len(before) - 1
    assert "unregistered" in lines[0]
    # what the kit refuses, and why: Flower takes the key no more
    (pem,) = before.keys() - after.keys()
    with Control(open_server(federation.server)) as control:
        with pytest.raises(RunError) as caught:
            control.register_node(pem, "device-2")
        assert not isinstance(caught.value, UnreachableError)


def test_a_run_that_the_superlink_does_not_know_is_an_error(federation):
    with Control(open_server(federation.server)) as control:
        with pytest.raises(RunError) as caught:
            control.run(12345)
        assert not isinstance(caught.value, UnreachableError)


def test_a_resume_of_nothing_makes_nothing_and_starts_nothing(federation):
    mistyped = federation.folder / "runs" / "mistyped"
    lines = federation.log(federation.server, "superlink").count("StartRun")
    with pytest.raises(RunError, match="missing, so there is nothing to resume"):
        submit.run(federation.server, federation.folder / "config.yaml", resume=mistyped)
    assert not mistyped.exists()
    assert federation.log(federation.server, "superlink").count("StartRun") == lines


def test_an_answer_without_the_run_is_an_error_and_no_state(federation, monkeypatch):
    """An empty answer would read as a state that never finishes."""
    from flwr.proto.control_pb2 import ListRunsResponse

    with Control(open_server(federation.server)) as control:
        monkeypatch.setattr(control._client, "ListRuns", lambda _: ListRunsResponse())
        with pytest.raises(RunError, match="does not know the run 12345"):
            control.run(12345)


def test_a_file_that_is_replaced_just_now_does_not_end_the_server(tmp_path, monkeypatch):
    (tmp_path / "admitted").mkdir()
    for name in ("ann", "bob"):
        (tmp_path / "admitted" / f"{name}.json").write_text("{}")
    look = nodes.Registrar(ServerFolder(tmp_path, "h", 1, 2, ""), print)._snapshot
    real = Path.glob

    def glob(self, pattern):
        found = list(real(self, pattern))
        (tmp_path / "admitted" / "ann.json").unlink(missing_ok=True)  # after it was listed
        return found

    monkeypatch.setattr(Path, "glob", glob)
    assert [name for name, _ in look()] == ["bob.json"]
