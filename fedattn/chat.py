"""Talk to the model of a run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fedattn.checkpoint import load_model
from fedattn.errors import RunError
from fedattn.generate import reply_to
from fedattn.report import read_report
from fedattn.tokens import Tokenizer


def chat(run_dir: Path, *, max_tokens: int) -> None:
    """Read lines and answer each; RunError if the run did not finish."""
    if not run_dir.is_dir():
        raise RunError(f"{run_dir}: no such run; `fedattn simulate` prints where it is")
    report = read_report(run_dir)
    model = load_model(run_dir / report.model.file).eval()
    tokenizer = Tokenizer(model.shape.vocab_size)
    console, turns = Console(), []
    for note in report.notes:
        console.print(note, style="bold red", markup=False)
    console.print("say something; an empty line ends the chat", style="dim")
    while True:
        try:
            said = console.input("[bold]you[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not said:
            return
        turns.append(said)
        answer = reply_to(model, tokenizer, turns, max_tokens).text
        turns.append(answer)
        console.print("[bold]it [/]", end=" ")
        console.print(answer, markup=False, highlight=False)
