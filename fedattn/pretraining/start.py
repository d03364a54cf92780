"""From a recipe to a checkpoint and its card, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedattn.pretraining.card import model_card
from fedattn.pretraining.corpus import make_corpus
from fedattn.pretraining.recipe import load_recipe
from fedattn.pretraining.training import Trained, pretrain

BUILD = Path("build/pretraining")


def make_public_start(
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    out: Path = BUILD / "public.safetensors",
    corpus: Path = BUILD / "corpus",
    npm: Path = Path("build/npm"),
    tell: Callable[[str], None] = print,
) -> Trained:
    """Make the corpus where it is not there yet, train, write `out` and the card beside it.

    ConfigError, DataError and RunError say what is missing and how it is got.
    """
    chosen = load_recipe(recipe, overrides)
    manifest = make_corpus(chosen, corpus, npm, tell)
    out.parent.mkdir(parents=True, exist_ok=True)
    notes = {"source": "public text", "corpus": str(manifest["sha256"])}
    trained = pretrain(chosen, corpus, out, notes=notes, tell=tell)
    card = out.with_suffix(".md")
    card.write_text(model_card(out.name, chosen, manifest, trained), "utf-8")
    tell(f"wrote {out} ({trained.bytes:,} bytes, model {trained.sha256[:16]}) and {card}")
    return trained
