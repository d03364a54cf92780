"""Pre-training from the command line, and the checkpoint that the package ships."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from fedattn import assets
from fedattn.checkpoint import load_model, model_sha256
from fedattn.cli_pretrain import pretrain
from fedattn.config import Architecture, validated
from fedattn.data import Dialogue
from fedattn.pretraining.prose import alternate
from fedattn.pretraining.recipe import Recipe, load_recipe
from fedattn.pretraining.training import rate_at, styled

ASSETS = Path(assets.__path__[0])
RECIPE = {
    "sources": ["talk"],
    "held_out": {"talk": 0.2},
    "talk_dialogues": 200,
    "architecture": {
        "vocab_size": 300,
        "d_model": 16,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "context_tokens": 16,
        "reply_tokens": 16,
    },
    "training": {
        "phases": [
            {"name": "short", "steps": 6, "mixture": {"talk": 1.0}, "context_tokens": 8},
            {"name": "long", "steps": 6, "mixture": {"talk": 1.0}},
        ],
        "batch": 4,
        "learning_rate": 0.01,
        "muon_scale": 1.5,
        "warmup": 2,
        "probe_every": 6,
        "probe_examples": 10,
    },
}


@pytest.fixture(autouse=True)
def threads():
    """As many threads after a test as before it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder, *arguments):
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), "utf-8")
    app = typer.Typer()
    app.command()(pretrain)
    out, corpus = folder / "tiny.safetensors", folder / "corpus"
    said = [str(recipe), "--out", str(out), "--corpus", str(corpus), *arguments]
    result = CliRunner().invoke(app, said, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out, result.output


def scores(output):
    return [float(found) for found in re.findall(r"talk (\d+\.\d+)", output)]


def test_a_recipe_becomes_a_checkpoint_that_scores_better_and_a_card_that_names_it(tmp_path):
    out, output = run(tmp_path)
    first, last = scores(output)
    assert last < first
    model = load_model(out)
    assert model.shape == validated(Architecture, RECIPE["architecture"], where="test")
    card = out.with_suffix(".md").read_text("utf-8")
    assert model_sha256(model) in card
    assert "| talk (own) | 1 | Apache-2.0" in card


def test_the_same_recipe_gives_the_same_checkpoint_and_another_seed_another(tmp_path):
    first = model_sha256(load_model(run(tmp_path)[0]))  # (metadata has no fixed order)
    assert model_sha256(load_model(run(tmp_path)[0])) == first
    assert model_sha256(load_model(run(tmp_path, "--set", "seed=2")[0])) != first


def test_a_corpus_alone_is_made_without_training(tmp_path):
    out, output = run(tmp_path, "--corpus-only")
    assert (tmp_path / "corpus" / "manifest.json").is_file()
    assert not out.exists()
    assert "step" not in output


def test_the_rate_warms_up_and_falls_to_its_last_share():
    training = validated(Recipe, RECIPE, where="test").training
    rates = [rate_at(step, 12, training) for step in range(12)]
    assert rates[0] == pytest.approx(training.learning_rate / training.warmup, rel=0.02)
    assert all(a > b for a, b in pairwise(rates[1:]))
    assert rates[-1] >= training.learning_rate * training.last_rate


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("as it is", "i'm fine, i think"),
        ("sentence", "I'm fine, I think."),
        ("lower", "i'm fine, i think"),
        ("casual", "im fine, i think"),
    ],
)
def test_styles_change_case_and_punctuation_alone(style, said):
    dialogue = Dialogue("d", alternate(["i'm fine, i think", "ok"]))
    assert styled(dialogue, style).turns[0].text == said


def test_the_shipped_checkpoint_is_small_and_its_card_names_it():
    path = ASSETS / "public.safetensors"
    assert path.stat().st_size <= 8_000_000
    assert model_sha256(load_model(path)) in path.with_suffix(".md").read_text("utf-8")


def test_the_shipped_recipe_trains_on_no_aiml_and_holds_out_modern_text():
    recipe = load_recipe(Path(__file__).parents[2] / "configs" / "pretrain.yaml")
    used = {name for phase in recipe.training.phases for name in phase.mixture}
    assert not used & {"aiml", "chatterbot"}
    assert recipe.held_out["chatterbot"] == recipe.held_out["aiml"] == 1.0
    assert recipe.architecture == Architecture()
