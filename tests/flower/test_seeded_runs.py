"""A seeded run depends on its seed alone: not on node ids, time, keys or who answers first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from flwr.app import Message

from fedattn import simulate
from fedattn.encoding import codec_seed
from fedattn.entries import Release
from fedattn.flower import grid
from fedattn.ledger import read_ledger
from tests.contract.cases import CASES
from tests.federation import conversations, write

PLAIN = [case for case in CASES if not case.decliners]


class Shuffled(grid.EmbeddedGrid):
    """An embedded grid whose node ids run the other way and whose replies come last first."""

    def __init__(self, client_app, nodes, **keywords) -> None:
        super().__init__(
            client_app, {1000 - node: each for node, each in nodes.items()}, **keywords
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(list(message_ids)[::-1])


def released(config, folder) -> list[str]:
    folder.mkdir()
    simulate.simulate(config, folder)
    bodies = [entry.body for entry in read_ledger(folder / "ledger.jsonl")]
    return [body.model_after for body in bodies if isinstance(body, Release)]


@pytest.mark.parametrize("case", PLAIN, ids=[case.name for case in PLAIN])
def test_node_ids_and_the_order_of_replies_do_not_reach_the_model(tmp_path, monkeypatch, case):
    data = write(tmp_path / "data.jsonl", conversations())
    models = released(case.config(data), tmp_path / "a")
    monkeypatch.setattr(grid, "EmbeddedGrid", Shuffled)
    assert released(case.config(data), tmp_path / "b") == models


def test_the_codec_of_a_seeded_round_follows_from_seed_and_round_alone(make_config):
    seeded, other = make_config(seed=5), make_config(seed=6)
    assert codec_seed(seeded, 1, b"a" * 32) == codec_seed(seeded, 1, b"b" * 32)
    assert codec_seed(seeded, 1, b"a" * 32) != codec_seed(seeded, 2, b"a" * 32)
    assert codec_seed(seeded, 1, b"a" * 32) != codec_seed(other, 1, b"a" * 32)


def test_the_codec_of_a_private_round_follows_from_its_instruction(make_config):
    assert codec_seed(make_config(), 1, b"a" * 32) == b"a" * 32
