"""Commands that use a trained model: talk to it, answer a file, export it, make it smaller."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedattn.compress import Comparison
    from fedattn.sampling import Sampling

Model = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run directory, an exported folder, a .safetensors file, or `public`.",
        show_default=False,
    ),
]
Temperature = Annotated[
    float, typer.Option(min=0.0, help="0 is greedy; 1 is the model's own distribution.")
]
TopP = Annotated[
    float,
    typer.Option(
        help="Draw from the likeliest tokens that hold this share; with a temperature above 0."
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(min=1.0, max=100.0, help="Above 1: the reply's own tokens come less often again."),
]
# (the bound is growing.LONGEST, whose module imports torch)
MaxTokens = Annotated[int, typer.Option(min=1, max=4096, help="Longest reply, in tokens.")]
Seed = Annotated[int | None, typer.Option(help="Repeatable draws; without it, new ones.")]


def chat(
    run: Model,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_tokens: MaxTokens = 40,
    seed: Seed = None,
) -> None:
    """Talk to a model. /help lists what else it can do; an empty line or Ctrl-D ends the chat."""
    from fedattn.chat import Settings
    from fedattn.chat import chat as talk
    from fedattn.dialogue_generator import load

    settings = Settings(_sampling(temperature, top_p, repetition_penalty), max_tokens, seed)
    talk(load(run), settings)


def generate(
    run: Model,
    source: Annotated[
        Path,
        typer.Option(
            "--in",
            help="JSONL: `context`, a list of texts, or `turns` or `messages` as in docs/data.md.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="JSONL to make; never overwritten.", show_default=False)
    ],
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_tokens: MaxTokens = 40,
    seed: Seed = None,
    batch: Annotated[int, typer.Option(min=1, help="Conversations computed together.")] = 32,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad lines out instead of stopping.")
    ] = False,
) -> None:
    """Reply to every conversation of a file. The reply is what comes after the last turn."""
    from fedattn.answers import answer, write_answers
    from fedattn.data.contexts import read_contexts
    from fedattn.dialogue_generator import load
    from fedattn.durable import require_new

    sampling = _sampling(temperature, top_p, repetition_penalty)
    require_new(out, "--out")
    read = read_contexts(source)
    contexts = read.accepted(skip_bad=skip_bad)
    generator = load(run)
    _warn(generator.notes)
    answers = answer(
        generator, contexts, sampling=sampling, max_tokens=max_tokens, seed=seed, batch=batch
    )
    write_answers(out, answers)
    skipped = f"; {_count(read.skipped, 'bad line')} left out" if read.skipped else ""
    typer.echo(f"wrote {out}: {_count(len(answers), 'reply')}{skipped}")


def _sampling(temperature: float, top_p: float, repetition_penalty: float) -> Sampling:
    from fedattn.errors import ConfigError
    from fedattn.sampling import Sampling, as_typed

    try:
        return Sampling(temperature, top_p, repetition_penalty)
    except ConfigError as error:
        raise ConfigError(as_typed(error, "--")) from None


def _count(number: int, what: str) -> str:
    if number != 1:
        what = what.removesuffix("y") + ("ies" if what.endswith("y") else "s")
    return f"{number} {what}"


OutDir = Annotated[
    Path, typer.Option("--out", help="Folder to make; never overwritten.", show_default=False)
]


def export(run: Model, out: OutDir) -> None:
    """Write a folder to give away: weights (safetensors), config.json, a model card."""
    from fedattn.export import export as write
    from fedattn.found_model import find_model

    found = find_model(run)
    _warn(found.notes)
    write(found, out)
    typer.echo(f"wrote {out}; talk to it with  fedattn chat {out}")


def compress(
    run: Model,
    out: OutDir,
    prune: Annotated[
        float, typer.Option(help="Share of all weights, the smallest, that become 0.")
    ] = 0.0,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round weights to 8-bit integers, a scale for each row.")
    ] = False,
    examples: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Replies of validation users to score; 0: none.",
            show_default="as many as the run did",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Write a smaller model, and show what it costs: bytes, tokens per second, bits per byte."""
    from fedattn.compress import POST_PROCESSING
    from fedattn.compress import compress as write
    from fedattn.found_model import find_model

    found = find_model(run)
    _warn(found.notes)
    if not as_json:
        typer.secho("measuring before and after; this can take a minute", err=True, dim=True)
    made = write(found, out, share=prune, is_int8=int8, examples=examples)
    if made.after.file_bytes >= made.before.file_bytes:
        _warn(["the file did not get smaller: which weights are 0 takes a bit each; prune more"])
    if as_json:
        typer.echo(json.dumps(asdict(made)))
        return
    from rich.console import Console

    Console().print(_compared(made))
    typer.echo(POST_PROCESSING)
    typer.echo(f"wrote {out}; talk to it with  fedattn chat {out}")


def _compared(made: Comparison) -> Table:
    from rich.table import Table

    before, after = made.before, made.after
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="right" if name else "left")
    bytes_ratio = f"x {after.file_bytes / before.file_bytes:.2f}"
    table.add_row("file bytes", f"{before.file_bytes:,}", f"{after.file_bytes:,}", bytes_ratio)
    speeds = (f"{each.tokens_per_s:,.0f}" for each in (before, after))
    speed_ratio = f"x {after.tokens_per_s / before.tokens_per_s:.2f}"
    threads = f"{made.threads} thread{'' if made.threads == 1 else 's'}"
    table.add_row(f"tokens per second ({threads})", *speeds, speed_ratio)
    if before.bpb is None or after.bpb is None:
        table.add_row("bits per byte (needs a run and --examples)", "not measured", "", "")
    else:
        what = f"bits per byte ({made.examples} validation replies)"
        change = f"{after.bpb - before.bpb:+.4f}"
        table.add_row(what, f"{before.bpb:.4f}", f"{after.bpb:.4f}", change)
    return table


def _warn(notes: Sequence[str]) -> None:
    """What must be said loudly, on stderr."""
    from fedattn.printable import printable

    for note in notes:
        typer.secho(printable(note), err=True, fg="red", bold=True)
