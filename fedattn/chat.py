"""Talk to a model in a terminal: replies as they are made, and commands that begin with `/`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from rich.console import Console
from rich.text import Text

from fedattn.attention_view.terminal import heat_line
from fedattn.dialogue_generator import DialogueGenerator
from fedattn.errors import ConfigError, DataError
from fedattn.growing import GrowingReply, require_length
from fedattn.printable import printable
from fedattn.sampling import GREEDY, Sampling, as_typed

HELP: Final = """\
/why                     what the last reply attended to, averaged over layers and heads
/reset                   forget the conversation
/temperature T           0 is greedy; 1 is the model's own distribution
/top-p P                 draw from the likeliest tokens that together hold P; not if greedy
/repetition-penalty R    1 is none
/max-tokens N            the longest reply
/seed N                  repeatable draws; `/seed none` makes new ones
/help                    this, and the settings as they are
/quit                    end the chat, as an empty line or Ctrl-D does
Ctrl-C stops the reply under way; twice without one, it ends the chat."""
_STAY: Final = "Ctrl-C again, Ctrl-D or an empty line ends the chat"


@dataclass(frozen=True)
class Settings:
    """How replies are made; ConfigError if one could not have a token, or more than LONGEST."""

    sampling: Sampling = GREEDY
    max_tokens: int = 40
    seed: int | None = None

    def __post_init__(self) -> None:
        require_length(self.max_tokens, least=1)

    def __str__(self) -> str:
        of = self.sampling
        idle = [
            *(["top-p"] if of.top_p < 1 else []),
            *(["seed"] if self.seed is not None else []),
        ]
        greedy = f" (greedy: {' and '.join(idle)} without effect)" if idle else ""
        return (
            f"temperature {of.temperature:g}, top-p {of.top_p:g}, repetition-penalty "
            f"{of.repetition_penalty:g}, max-tokens {self.max_tokens}, seed "
            f"{'none' if self.seed is None else self.seed}{greedy if of.is_greedy else ''}"
        )


class Chat:
    """One conversation with `generator`, on `console`; `read` gives a person's next line."""

    def __init__(
        self,
        generator: DialogueGenerator,
        settings: Settings,
        *,
        console: Console,
        read: Callable[[], str],
    ) -> None:
        self._generator, self._settings = generator, settings
        self._console, self._read = console, read
        self._turns: list[str] = []
        self._last: GrowingReply | None = None  # to all turns but the last
        self._replies = 0

    def run(self) -> None:
        """Answer line after line until an empty one, /quit, the end of input or two Ctrl-C.

        One Ctrl-C can be meant for a reply that has just ended, and would lose the conversation.
        """
        for note in self._generator.notes:
            self._say(note, "bold red")
        self._say("say something; /help lists commands, an empty line ends the chat", "dim")
        is_warned = False
        while True:
            try:
                line = self._read().strip()
            except (EOFError, KeyboardInterrupt) as end:
                self._console.print()
                if is_warned or isinstance(end, EOFError):
                    return
                self._say(_STAY, "dim")
                is_warned = True
                continue
            is_warned = False
            name, _, value = line.partition(" ")
            if name in ("", "/quit"):
                return
            if name.startswith("/"):
                self._obey(name[1:], value.strip())
            else:
                self._answer(line)

    def _answer(self, said: str) -> None:
        of = self._settings
        self._console.print(Text("it  ", style="bold"), end="")
        growing = None
        try:
            growing = self._generator.stream(
                [*self._turns, said],
                temperature=of.sampling.temperature,
                top_p=of.sampling.top_p,
                repetition_penalty=of.sampling.repetition_penalty,
                max_tokens=of.max_tokens,
                seed=of.seed,
                number=self._replies,
            )
            for piece in growing:
                self._put(piece)
            self._console.print()
        except DataError:
            self._say("that is no text: it holds half a character; write it again", "yellow")
            return
        except KeyboardInterrupt:
            self._say(" (stopped)", "dim")
        if growing is None or not growing.text:
            # without a reply there is no turn of the model's: what was said would be two in one
            self._say("(no reply; that was not added to the conversation)", "dim")
            return
        self._turns += [said, growing.text]
        self._last, self._replies = growing, self._replies + 1

    def _obey(self, name: str, value: str) -> None:
        if name == "why":
            self._why()
        elif name == "reset":
            self._turns, self._last, self._replies = [], None, 0
            self._say("forgotten", "dim")
        elif name == "help":
            self._say(HELP, "dim")
            self._say(f"now: {self._settings}", "dim")
        elif name in _SETTINGS:
            try:
                self._settings = _SETTINGS[name](self._settings, value)
            except ValueError:
                whole = "a whole number" if name in ("max-tokens", "seed") else "a number"
                self._say(f"/{name} needs {whole}; /help shows how", "yellow")
            except ConfigError as error:
                self._say(as_typed(error, "/"), "yellow")
            else:
                self._say(f"now: {self._settings}", "dim")
        else:
            self._say(f"no such command: /{name}; /help lists them", "yellow")

    def _why(self) -> None:
        if self._last is None:
            self._say("nothing was replied yet", "dim")
            return
        attention = self._generator.attention(self._turns[:-1], self._last)
        self._console.print(heat_line(attention), soft_wrap=True)

    def _say(self, text: str, style: str) -> None:
        # a note or a command may hold text of others
        lines = [printable(line) for line in text.split("\n")]
        self._console.print(Text("\n".join(lines), style=style), soft_wrap=True)

    def _put(self, piece: str) -> None:
        self._console.print(Text(printable(piece)), end="", soft_wrap=True)
        self._console.file.flush()


def _with_seed(settings: Settings, value: str) -> Settings:
    return replace(settings, seed=None if value == "none" else int(value))


def _with_max_tokens(settings: Settings, value: str) -> Settings:
    return replace(settings, max_tokens=int(value))


def _with_sampling(field: str) -> Callable[[Settings, str], Settings]:
    return lambda settings, value: replace(
        settings, sampling=replace(settings.sampling, **{field: float(value)})
    )


_SETTINGS: Final[dict[str, Callable[[Settings, str], Settings]]] = {
    "temperature": _with_sampling("temperature"),
    "top-p": _with_sampling("top_p"),
    "repetition-penalty": _with_sampling("repetition_penalty"),
    "max-tokens": _with_max_tokens,
    "seed": _with_seed,
}


def chat(generator: DialogueGenerator, settings: Settings) -> None:
    """Chat on stdin and stdout, terminal or not."""
    for stream in (sys.stdin, sys.stdout):
        # what a stream cannot read or show becomes a sign, not the end of the chat
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  makes input() edit lines
    Chat(generator, settings, console=Console(), read=_read_line).run()


def _read_line() -> str:
    """The next line of stdin; shown if no terminal echoed it, so that a pipe can be read."""
    line = input("you ")
    if not sys.stdin.isatty():
        print(printable(line), flush=True)
    return line
