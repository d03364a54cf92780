"""`fedattn attention`: what a reply looked at, and whether that is what it depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedattn.attention_view.faithfulness import Estimate, Faithfulness
    from fedattn.config import DataConfig
    from fedattn.found_model import FoundModel


class _Asked(NamedTuple):
    """What `--faithfulness` is measured on; None: not said."""

    examples: int | None
    replies: str | None
    seed: int | None
    config: Path | None


def attention(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run directory, an exported folder, a .safetensors file, or `public`.",
            show_default=False,
        ),
    ],
    say: Annotated[
        list[str] | None,
        typer.Option(help="A turn, oldest first; the last is yours. Repeatable.", metavar="TEXT"),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="One decoder layer, from 0; without it, the average.")
    ] = None,
    head: Annotated[
        int | None, typer.Option(help="One head, from 0; without it, the average.")
    ] = None,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Attention through all layers, not the last step's.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the view to this new HTML file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the map to this new PNG file.")] = None,
    max_tokens: Annotated[
        int,
        typer.Option(min=1, max=4096, help="Longest reply of the model's own, in tokens."),
    ] = 40,
    faithfulness: Annotated[
        bool,
        typer.Option(
            "--faithfulness",
            help="Measure on held-out validation replies: does leaving out the most attended "
            "turn hurt more than leaving out another?",
        ),
    ] = False,
    examples: Annotated[
        int | None,
        typer.Option(min=1, help="How many, for --faithfulness.", show_default="200"),
    ] = None,
    replies: Annotated[
        str | None,
        typer.Option(
            help="For --faithfulness. real: what people replied; own: what the model replies.",
            show_default="real",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the bootstrap, for --faithfulness.", show_default="0"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="For --faithfulness: whose data, split as the model was trained; "
            "a run has its own."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Show what a reply looked at, or measure whether attention tells what it depends on."""
    from fedattn.durable import require_new
    from fedattn.errors import AttentionError
    from fedattn.found_model import find_model

    asked = _Asked(examples, replies, seed, config)
    if faithfulness == bool(say):
        raise AttentionError("give either --say TEXT, once a turn, or --faithfulness")
    if faithfulness:
        if html or png or rollout or layer is not None or head is not None:
            raise AttentionError(
                "--faithfulness measures the average and rollout both; drop the other options"
            )
        if replies not in (None, "real", "own"):
            raise AttentionError("--replies: must be real or own")
        _measure(find_model(run), asked, max_tokens, as_json=as_json)
        return
    if any(each is not None for each in asked):
        raise AttentionError("--examples, --replies, --seed, --config: are of --faithfulness alone")

    turns = [text.strip() for text in say or []]
    if not all(turns):
        raise AttentionError("--say: a turn is empty; give it a text or leave it out")
    for path, option in ((html, "--html"), (png, "--png")):
        if path is not None:
            require_new(path, option)
    from fedattn.dialogue_generator import DialogueGenerator
    from fedattn.durable import write_new

    generator = DialogueGenerator(find_model(run))
    made = generator.reply(turns, max_tokens=max_tokens)
    seen = generator.attention(
        turns, made, layer=layer, head=head, method="rollout" if rollout else "mean"
    )
    what = _what(layer, head, rollout=rollout)
    if html is not None:
        from fedattn.attention_view.page import attention_page

        title = f"{what} · {Path(run).name}"
        page = attention_page(seen, reply=made.text, what=title, notes=generator.notes)
        write_new(html, page.encode())
    if png is not None:
        from fedattn.attention_view.picture import heat_png

        write_new(png, heat_png(seen, what=what))
    if as_json:
        stored = {"reply": made.text, "attention": seen.to_json(), "notes": generator.notes}
        typer.echo(json.dumps(stored))
        return
    from rich.console import Console

    from fedattn.attention_view.terminal import heat_line
    from fedattn.printable import printable

    console = Console()
    _say_notes(console, generator.notes)
    console.print(printable(made.text), style="bold", markup=False, highlight=False)
    console.print(what, style="dim")
    console.print(heat_line(seen))


def _measure(found: FoundModel, asked: _Asked, max_tokens: int, *, as_json: bool) -> None:
    from fedattn.attention_view.compute import turns_in
    from fedattn.attention_view.faithfulness import faithfulness
    from fedattn.batches import tokenize
    from fedattn.data import load_partition
    from fedattn.generate import choose_pairs
    from fedattn.protocol import HELD_OUT_BYTES
    from fedattn.tokens import Tokenizer

    data, count = _data_of(found, asked.config), asked.examples or 200
    if not as_json:
        typer.secho(f"measuring {count} replies; a second or so each", err=True, dim=True)
    model = found.model.eval()
    tokenizer = Tokenizer(model.shape.vocab_size)
    records = tokenize(load_partition(data).validation, tokenizer, HELD_OUT_BYTES)
    window = model.shape.context_tokens
    pairs = choose_pairs(records, tokenizer, window, 8 * count, "attention")
    long = [pair for pair in pairs if turns_in(pair.context, tokenizer)[-1] > 0]
    result = faithfulness(
        model,
        tokenizer,
        long[:count],
        replies="own" if asked.replies == "own" else "real",
        seed=asked.seed or 0,
        max_tokens=max_tokens,
    )
    if as_json:
        typer.echo(json.dumps({**result.to_json(), "notes": found.notes}))
        return
    from rich.console import Console

    console = Console()
    _say_notes(console, found.notes)
    console.print(_table(result))


def _data_of(found: FoundModel, config: Path | None) -> DataConfig:
    """Whose validation users are held out from the model's training, as far as is known.

    The salt decides who they are: with another config most of them would be people who trained.
    """
    from fedattn.config import config_from_dict, load_config
    from fedattn.data import describe
    from fedattn.errors import AttentionError

    if found.report is not None:
        if config is not None:
            raise AttentionError("--config: a run has its own; drop it")
        return config_from_dict(found.report.config).data
    if config is None:
        raise AttentionError(
            "--faithfulness: without a run nobody knows who was held out; give --config, the one "
            "that the model was trained with"
        )
    data = load_config(config).data
    privacy = found.released.privacy if found.released is not None else None
    if privacy is not None and privacy.data_set != describe(data):
        raise AttentionError(
            "--config: names other data, or another split, than the model was trained on; its "
            "validation users may have trained. Give the run's own config"
        )
    return data


def _say_notes(console: Console, notes: tuple[str, ...]) -> None:
    from fedattn.printable import printable

    for note in notes:  # a report can be anybody's
        console.print(printable(note), style="bold red", markup=False, highlight=False)


def _table(result: Faithfulness) -> Table:
    from rich.table import Table

    names = {
        "mean": "most attended\n(average)",
        "rollout": "most attended\n(rollout)",
        "last": "the last",
        "longest": "the longest",
    }
    whose = "real replies" if result.replies == "real" else "replies of the model's own"
    table = Table(
        title=f"What a reply loses without one turn, more than without another\n"
        f"{result.examples} {whose}, validation users; bootstrap 95% intervals",
        caption="An interval that holds 0, or 50% of “hurts more”, shows no difference. The last "
        "two rules look at no attention: attention tells something where it beats them. See "
        "docs/attention.md",
    )
    table.add_column("turn left out")
    for head in ("nats/token", "bits/byte", "hurts more", "is last"):
        table.add_column(head, justify="right")
    for each in result.comparisons:
        table.add_row(
            names[each.rule],
            _show(each.difference, "+.3f"),
            _show(each.bits_per_byte, "+.3f"),
            _show(each.chosen_hurts_more, ".0%"),
            f"{each.chosen_is_last:.0%}",
        )
    return table


def _show(estimate: Estimate, form: str) -> str:
    low, high = format(estimate.low, form), format(estimate.high, form)
    return f"{format(estimate.value, form)}\n[{low}, {high}]"


def _what(layer: int | None, head: int | None, *, rollout: bool) -> str:
    if rollout:
        return "attention rollout through all layers"
    where = "all layers" if layer is None else f"layer {layer}"
    which = "all heads" if head is None else f"head {head}"
    return f"attention to the conversation, {where}, {which}"
