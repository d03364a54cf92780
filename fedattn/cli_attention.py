"""`fedattn attention`: what a reply looked at, and whether that is what it depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedattn.attention_view.faithfulness import Estimate, Faithfulness
    from fedattn.config import DataConfig
    from fedattn.model import AttentionGenerator
    from fedattn.tokens import Tokenizer


class _Opened(NamedTuple):
    model: AttentionGenerator
    tokenizer: Tokenizer
    data: DataConfig
    notes: tuple[str, ...]


def attention(
    run: Annotated[
        Path,
        typer.Argument(help="A run directory, or a .safetensors checkpoint.", show_default=False),
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
    html: Annotated[Path | None, typer.Option(help="Write the view to this HTML file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the map to this PNG file.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 40,
    faithfulness: Annotated[
        bool,
        typer.Option(
            "--faithfulness",
            help="Measure on held-out validation replies: does leaving out the most attended "
            "turn hurt more than leaving out another?",
        ),
    ] = False,
    examples: Annotated[int, typer.Option(min=1, help="How many, for --faithfulness.")] = 200,
    replies: Annotated[
        str, typer.Option(help="real: what people replied; own: what the model replies.")
    ] = "real",
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap, for --faithfulness.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(help="Whose data a checkpoint is measured on; a run has its own."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Show what a reply looked at, or measure whether attention tells what it depends on."""
    from fedattn.errors import AttentionError

    if faithfulness == bool(say):
        raise AttentionError("give either --say TEXT, once a turn, or --faithfulness")
    if replies not in ("real", "own"):
        raise AttentionError(f"--replies {replies}: must be real or own")
    opened = _open(run, config)
    if faithfulness:
        if html or png or rollout or layer is not None or head is not None:
            raise AttentionError(
                "--faithfulness measures the average and rollout both; drop the other options"
            )
        _measure(opened, examples, "own" if replies == "own" else "real", seed, as_json=as_json)
        return

    from fedattn.attention_view.compute import attention_of
    from fedattn.generate import reply_to

    turns = [text.strip() for text in say or []]
    if not all(turns):
        raise AttentionError("--say: a turn is empty; give it a text or leave it out")
    made = reply_to(opened.model, opened.tokenizer, turns, max_tokens)
    seen = attention_of(
        opened.model,
        opened.tokenizer,
        turns,
        made.ids,
        layer=layer,
        head=head,
        method="rollout" if rollout else "mean",
    )
    what = _what(layer, head, rollout=rollout)
    if html is not None:
        from fedattn.attention_view.page import attention_page

        page = attention_page(
            seen, reply=made.text, what=f"{what} · {run.name}", notes=opened.notes
        )
        _write(html, page.encode())
    if png is not None:
        from fedattn.attention_view.picture import heat_png

        _write(png, heat_png(seen))
    if as_json:
        stored = {"reply": made.text, "attention": seen.to_json(), "notes": opened.notes}
        typer.echo(json.dumps(stored))
        return
    from rich.console import Console

    from fedattn.attention_view.terminal import heat_line
    from fedattn.attention_view.visible import visible

    console = Console()
    for note in opened.notes:
        console.print(note, style="bold red", markup=False)
    console.print(visible(made.text), style="bold", markup=False, highlight=False)
    console.print(what, style="dim")
    console.print(heat_line(seen))


def _open(run: Path, config: Path | None) -> _Opened:
    from fedattn.checkpoint import load_model
    from fedattn.config import DataConfig, config_from_dict, load_config
    from fedattn.errors import AttentionError, RunError
    from fedattn.report import read_report
    from fedattn.tokens import Tokenizer

    data = DataConfig()
    notes: tuple[str, ...] = ()
    if run.is_dir():
        if config is not None:
            raise AttentionError("--config: a run has its own; give it with a checkpoint alone")
        report = read_report(run)
        data, notes = config_from_dict(report.config).data, tuple(report.notes)
        model = load_model(run / report.model.file).eval()
    elif run.is_file():
        model = load_model(run).eval()
        data = data if config is None else load_config(config, []).data
    else:
        raise RunError(f"{run}: no such run; `fedattn simulate` prints where it is")
    return _Opened(model, Tokenizer(model.shape.vocab_size), data, notes)


def _measure(opened: _Opened, examples: int, replies: str, seed: int, *, as_json: bool) -> None:
    from fedattn.attention_view.compute import turns_in
    from fedattn.attention_view.faithfulness import faithfulness
    from fedattn.batches import tokenize
    from fedattn.data import load_partition
    from fedattn.generate import choose_pairs

    model, tokenizer, data, notes = opened
    records = tokenize(load_partition(data).validation, tokenizer, data.max_reply_bytes)
    window = model.shape.context_tokens
    pairs = choose_pairs(records, tokenizer, window, 8 * examples, "attention")
    long = [pair for pair in pairs if turns_in(pair.context, tokenizer)[-1] > 0]
    result = faithfulness(
        model, tokenizer, long[:examples], replies="own" if replies == "own" else "real", seed=seed
    )
    if as_json:
        typer.echo(json.dumps({**result.to_json(), "notes": notes}))
        return
    from rich.console import Console

    console = Console()
    for note in notes:
        console.print(note, style="bold red", markup=False)
    console.print(_table(result))


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
        caption="The last two rules look at no attention. See docs/attention.md",
    )
    table.add_column("turn left out")
    for head in ("nats/token", "bits/byte", "hurts more", "last"):
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


def _write(path: Path, content: bytes) -> None:
    from fedattn.errors import AttentionError

    try:
        path.write_bytes(content)
    except OSError as error:
        raise AttentionError(f"{path}: cannot be written ({error.strerror})") from None
