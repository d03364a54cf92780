"""`fedattn data`: look at conversations and clean them; nothing leaves this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    help="Look at conversations and clean them; nothing leaves this machine.", no_args_is_help=True
)

# what messages of the reader call by the config's names, and a person by an option
_AS_OPTIONS = (
    ("set data.skip_bad: true", "give --skip-bad"),
    ("check data.path", "check its path"),
    ("data.clean.region", "--region"),
)

_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
_SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave bad lines out instead of stopping.")
]


@data_app.command("inspect")
def data_inspect(
    config: Annotated[
        Path, typer.Argument(help="A YAML config; see configs/.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override one key: section.key=value. Repeatable."),
    ] = None,
    skip_bad: _SkipBad = False,
    as_json: _AsJson = False,
) -> None:
    """Count clients, conversations, examples and bytes, with quantiles; cleaned as configured."""
    from fedattn.config import load_config
    from fedattn.data.summary import inspect, quantile_table, share_table

    data = load_config(config, overrides or []).data
    summary = inspect(data, skip_bad=skip_bad or data.skip_bad)
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(summary), default=str))
        return
    from rich.console import Console

    console = Console()
    console.print(share_table(summary))
    console.print(quantile_table(summary))


@data_app.command("clean")
def data_clean(
    path: Annotated[
        Path,
        typer.Argument(metavar="IN", help="Conversations, one a line (JSONL).", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The file to make; never overwritten.")],
    junk: Annotated[
        bool, typer.Option("--junk/--no-junk", help="Drop turns without words.")
    ] = True,
    english: Annotated[
        bool, typer.Option("--english", help="Drop conversations that are hardly English.")
    ] = False,
    mask_pii: Annotated[
        bool,
        typer.Option("--mask-pii/--no-mask-pii", help="Mask emails, URLs, cards and phones."),
    ] = True,
    region: Annotated[
        str, typer.Option(help="Whose national phone numbers are known, e.g. US, GB, DE.")
    ] = "US",
    is_deduplicated: Annotated[
        bool,
        typer.Option("--dedupe/--no-dedupe", help="Drop what says the same as an earlier line."),
    ] = True,
    near: Annotated[
        float,
        typer.Option(help="Share of five-word runs in common that counts as the same; 1: all."),
    ] = 0.8,
    min_turns: Annotated[int, typer.Option(min=2, help="Drop conversations of fewer turns.")] = 2,
    min_reply_words: Annotated[
        int, typer.Option(min=0, help="Drop conversations without a reply of so many words.")
    ] = 0,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Drop conversations of more bytes of text.")
    ] = None,
    skip_bad: _SkipBad = False,
    as_json: _AsJson = False,
) -> None:
    """Clean a file of conversations into a new one that you alone can read; prints counts alone.

    Do it before you share a guarantee: what it is about is one conversation of the OUTPUT.
    """
    from fedattn.config import CleanConfig, validated
    from fedattn.data.clean_file import CleanOptions, clean_file, clean_table
    from fedattn.errors import DataError

    options = CleanOptions(
        rules=validated(
            CleanConfig,
            {
                "junk": junk,
                "english": english,
                "mask_pii": mask_pii,
                "min_reply_words": min_reply_words,
                "region": region,
            },
            where="fedattn data clean",
        ),
        is_deduplicated=is_deduplicated,
        near=near,
        min_turns=min_turns,
        max_bytes=max_bytes,
        skip_bad=skip_bad,
    )
    try:
        report = clean_file(path, out, options)
    except DataError as error:
        text = str(error)
        for in_config, option in _AS_OPTIONS:
            text = text.replace(in_config, option)
        raise DataError(text) from None
    if as_json:
        typer.echo(json.dumps(report.to_json()))
        return
    from rich.console import Console

    Console().print(clean_table(report))
    typer.echo(f"wrote {out}")
