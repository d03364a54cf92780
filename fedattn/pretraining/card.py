"""The model card of a public start, from the recipe, the corpus and what training measured."""

from __future__ import annotations

from typing import Any

from fedattn.pretraining.corpus import COMMON
from fedattn.pretraining.recipe import Recipe
from fedattn.pretraining.training import Trained

_HELD = {
    "chatterbot": "chatterbot-corpus (conversations, none trained on)",
    "aiml": "AIML",
    "sampled": "sampled text",
    "wordnet": "WordNet examples",
}


def model_card(name: str, recipe: Recipe, manifest: dict[str, Any], trained: Trained) -> str:
    """Markdown that says what the checkpoint `name` was made of and how."""
    used = {str(source) for phase in recipe.training.phases for source in phase.mixture}
    return f"""# Model card: {name}

The public start of fedattn: an attention-based encoder-decoder dialogue generator trained on
public text alone. No private text was read to make it, and no choice in its recipe was made by
looking at any. `docs/pretraining.md` says how and why; this page is written by
`fedattn pretrain` with the checkpoint.

| | |
|---|---|
{_facts(recipe, manifest, trained)}
## Text

| source | version | licence | replies | MB |
|---|---|---|---|---|
{_rows(manifest, used)}
Never trained on, and what every choice was made by:

| held-out public text | bits per byte |
|---|---|
{_scores(trained)}
## What was removed

{_removed(recipe)}
## What to expect of it

{_expectations(used)}"""


def _facts(recipe: Recipe, manifest: dict[str, Any], trained: Trained) -> str:
    shape, training = recipe.architecture, recipe.training
    optimizer = "AdamW" if training.muon_scale is None else "Muon and AdamW"
    facts = {
        "architecture": (
            f"encoder-decoder, {shape.encoder_layers}+{shape.decoder_layers} layers, "
            f"d {shape.d_model}, {shape.heads} heads, relative-position bias, tied embedding; "
            f"{trained.parameters:,} parameters"
        ),
        "vocabulary": (
            f"the first {shape.vocab_size:,} ids of GPT-2's byte-level BPE and five special ids"
        ),
        "training": (
            f"{trained.steps:,} steps of {training.batch} context-reply pairs, {optimizer}, peak "
            f"rate {training.learning_rate:g}, cosine, {training.precision}; "
            f"{trained.seconds / 60:.0f} minutes on {training.threads} thread(s) as run"
        ),
        "file": f"half precision, {trained.bytes / 1e6:.1f} MB",
        "corpus sha256": str(manifest["sha256"]),
        "model sha256": trained.sha256,
    }
    return "".join(f"| {name} | {fact} |\n" for name, fact in facts.items())


def _removed(recipe: Recipe) -> str:
    filters = recipe.filters
    return (
        'Turns with mark-up or links; with forum talk ("subreddit", "upvote", "til"); with a word\n'
        "of a block list (slurs, sexual and violent words); in capitals; with characters outside\n"
        f"ASCII; shorter than {filters.min_bytes} or longer than {filters.max_bytes} bytes. "
        "Sampled turns with a word that the whole\n"
        f"corpus has fewer than {filters.min_word_count} times. Replies beyond the first "
        f"{filters.max_copies} copies, and replies of more\n"
        f"than {COMMON} characters that also stand in held-out text.\n"
    )


def _rows(manifest: dict[str, Any], used: set[str]) -> str:
    rows = ""
    for name, entry in manifest["sources"].items():
        if name in used:
            rows += (
                f"| {name} ({entry['package']}) | {entry['version']} | {entry['licence']} "
                f"| {entry['replies']:,} | {entry['reply_bytes'] / 1e6:.2f} |\n"
            )
    return rows


def _scores(trained: Trained) -> str:
    return "".join(
        f"| {_HELD.get(name, name)} | {bpb:.3f} |\n" for name, bpb in trained.scores.items()
    )


def _expectations(used: set[str]) -> str:
    text = ""
    if "sampled" in used:
        text += (
            "Most of its modern English was written by a small network that others trained on\n"
            "Reddit submissions: it has their interests, their slang and their biases (young,\n"
            "male, North American), filtered, not cured, and makes little sense beyond a clause.\n"
        )
    if "plays" in used:
        text += "Plays and speeches hold the attitudes of their time.\n"
    return (
        f"{text}Intended use: the start of federated fine-tuning, and tests. It knows no facts and "
        "gives no\nadvice.\n"
    )
