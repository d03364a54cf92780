"""A chat in a real terminal, its commands, and output that cannot command the terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fedattn.chat import Chat, Settings
from fedattn.checkpoint import save_model
from fedattn.dialogue_generator import DialogueGenerator, load
from fedattn.growing import LONGEST
from fedattn.printable import printable
from fedattn.sampling import Sampling

# The terminal becomes the process's own, so that Ctrl-C typed into it is a signal; a suite that
# runs in the background hands down that signal ignored.
IN_A_TERMINAL = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("fedattn.cli", run_name="__main__")
"""
WAIT_S = 120


class Terminal:
    """`fedattn` in a pseudo-terminal, as a person at a keyboard meets it."""

    def __init__(self, *arguments):
        self._own, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, *map(str, arguments)],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(theirs)
        self.seen, self._read = "", b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._own)

    def type(self, text):
        os.write(self._own, text.encode())

    def wait_for(self, pattern):
        """What is shown from the last match to the end of the first match of `pattern`."""
        deadline = time.monotonic() + WAIT_S
        while not (found := re.search(pattern, self._read.decode(errors="replace"))):
            assert self._more(deadline), f"no {pattern!r} in {self._read!r}"
        text = self._read.decode(errors="replace")[: found.end()]
        self._read = self._read[len(text.encode()) :]
        self.seen += text
        return text

    def end(self):
        """The exit code, after reading all that is still said."""
        deadline = time.monotonic() + WAIT_S
        while self._more(deadline):
            pass
        self.seen += self._read.decode(errors="replace")
        return self._process.wait(timeout=WAIT_S)

    def _more(self, deadline):
        ready, _, _ = select.select([self._own], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"nothing more after {self._read!r}"
        try:
            new = os.read(self._own, 4096)
        except OSError:  # the other side is closed
            return False
        self._read += new
        return bool(new)


@pytest.fixture
def endless(tmp_path, generator, tokenizer):
    """A model that never ends a reply and cannot help saying escape characters."""
    model = generator()
    with torch.no_grad():
        model.head.bias[tokenizer.eos] = -1000.0
        model.head.bias[tokenizer.encode("\x1b")] += 4.0
    path = tmp_path / "endless.safetensors"
    save_model(path, model)
    return path


def test_a_chat_in_a_terminal_from_the_first_note_to_the_end(finished_run):
    with Terminal("chat", finished_run, "--max-tokens", "6") as terminal:
        terminal.wait_for(re.escape(load(finished_run).notes[0][:20]))
        terminal.wait_for("you $")
        terminal.type("red cat\n")
        terminal.wait_for(r"it  \S.*\r\nyou $")
        terminal.type("/why\n")
        assert "100%" in terminal.wait_for(r"most: .*\r\nyou $")
        terminal.type("/nonsense\n")
        terminal.wait_for(r"no such command: /nonsense.*\r\nyou $")
        terminal.type("\n")
        assert terminal.end() == 0


def test_ctrl_c_stops_the_reply_under_way_and_the_chat_goes_on(endless):
    with Terminal("chat", endless, "--max-tokens", str(LONGEST)) as terminal:
        terminal.wait_for("you $")
        terminal.type("hi\n")
        terminal.wait_for("it  .{40}")  # a hundredth of the whole: the rest would take seconds
        terminal.type("\x03")
        terminal.wait_for(r"\(stopped\)\r\nyou $")
        terminal.type("/max-tokens 3\n")
        terminal.wait_for(r"max-tokens 3,.*\r\nyou $")
        terminal.type("and now?\n")
        assert "stopped" not in terminal.wait_for("it  .*\r\nyou $")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "\x1b" not in terminal.seen
        assert "␛" in terminal.seen


def test_ctrl_c_at_the_prompt_ends_the_chat_the_second_time(endless):
    def interrupt():
        time.sleep(0.5)  # the prompt is there a moment before readline heeds a signal
        terminal.type("\x03")

    with Terminal("chat", endless, "--max-tokens", "3") as terminal:
        terminal.wait_for("you $")
        interrupt()
        terminal.wait_for(r"Ctrl-C again.*\r\nyou $")
        terminal.type("hi\n")
        terminal.wait_for(r"it  .*\r\nyou $")  # one for a reply that has just ended loses nothing
        interrupt()
        terminal.wait_for(r"Ctrl-C again.*\r\nyou $")
        interrupt()
        assert terminal.end() == 0


def test_a_pipe_will_do_and_bytes_that_are_no_text_do_not_end_the_chat(endless):
    done = subprocess.run(
        [sys.executable, "-m", "fedattn.cli", "chat", str(endless), "--max-tokens", "4"],
        input=b"hi\n\xff\xfe\n/temperature 1.5\nagain\n\nnot read\n",
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        capture_output=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"it  ") == 3
    assert b"you hi\n" in done.stdout  # what was said stands where a terminal would have it
    assert b"you again\n" in done.stdout
    assert b"temperature 1.5" in done.stdout
    assert b"\x1b" not in done.stdout


def talk(generator, *lines, settings=None):
    """What a chat shows for `lines` said, without prompts; an end of input follows them."""
    coming = iter(lines)

    def read():
        try:
            return next(coming)
        except StopIteration:
            raise EOFError from None

    shown = io.StringIO()
    console = Console(file=shown, force_terminal=False, width=60)
    Chat(generator, settings or Settings(max_tokens=6), console=console, read=read).run()
    return shown.getvalue()


@pytest.fixture
def talker(tmp_path, generator):
    path = tmp_path / "talker.safetensors"
    save_model(path, generator(3, spread=0.8))
    return load(path)


def replies(shown):
    return re.findall(r"^it  (.*)$", shown, re.MULTILINE)


def test_notes_come_first_and_are_not_interpreted(talker):
    loud = DialogueGenerator(replace(talker.found, notes=("[bold]NOT[/] \x1b[2JPRIVATE",)))
    assert talk(loud).startswith("[bold]NOT[/] ␛[2JPRIVATE\n")


def test_a_reply_goes_by_the_whole_conversation_and_reset_forgets_it(talker):
    said = ["hello there", "who are you?"]
    first, second, again = replies(talk(talker, *said, "/reset", said[0]))
    one = talker.reply([said[0]], max_tokens=6).text
    assert first == again == printable(one)
    assert second == printable(talker.reply([said[0], one, said[1]], max_tokens=6).text)


def test_settings_change_what_is_said_and_a_seed_repeats_it(talker):
    drawn = ["/temperature 1.3", "/top-p 0.9", "/repetition-penalty 1.2", "/seed 4", "hi", "yes"]
    shown = talk(talker, *drawn)
    assert replies(shown) == replies(talk(talker, *drawn))
    assert replies(shown) != replies(talk(talker, *drawn[:3], "/seed 5", "hi", "yes"))
    assert replies(shown)[0] != replies(talk(talker, "hi"))[0]
    same = Settings(Sampling(1.3, 0.9, 1.2), 6, 4)
    assert replies(talk(talker, "hi", "yes", settings=same)) == replies(shown)
    assert f"now: {same}" in shown
    assert "seed none" in talk(talker, "/seed none")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/temperature -1", "temperature: -1.0 must be at least 0"),
        ("/temperature", "/temperature needs a number"),
        ("/top-p nan", "/top-p: nan must be"),
        ("/max-tokens 0", "/max-tokens: 0 must be at least 1"),
        ("/max-tokens 5000", f"/max-tokens: 5000 must be at least 1 and at most {LONGEST}"),
        (
            "/repetition-penalty 1e39",
            "/repetition-penalty: 1e+39 must be in 1..100",
        ),
        ("/seed x", "/seed needs a whole number"),
        ("/why", "nothing was replied yet"),
        ("/\x1b[31m", "no such command: /␛[31m; /help lists them"),
        ("/help", "/repetition-penalty R"),
    ],
)
def test_a_command_that_does_not_fit_says_so_and_changes_nothing(talker, line, answer):
    shown = talk(talker, line, "hi")
    assert answer in shown
    assert "\x1b" not in shown
    assert replies(shown) == replies(talk(talker, "hi"))


def test_why_shows_the_share_of_every_turn_of_the_last_reply(talker):
    _, second = replies(talk(talker, "cats", "dogs"))
    turns = ["cats", talker.reply(["cats"], max_tokens=6).text, "dogs"]
    seen = talker.attention(turns, talker.reply(turns, max_tokens=6))
    shown = talk(talker, "cats", "dogs", "/why")
    assert shown.count(f"{seen.mean_by_turn()[-1]:4.0%} ") >= 1
    assert "dogs" in shown.split(second)[-1]


@pytest.mark.parametrize("end", ["", "  ", "/quit", "/quit now"])
def test_an_empty_line_and_quit_end_the_chat(talker, end):
    assert replies(talk(talker, "hi", end, "not read")) == replies(talk(talker, "hi"))


def test_half_a_character_is_no_text_and_is_forgotten(talker):
    shown = talk(talker, "\ud800", "hi")
    assert "write it again" in shown
    assert replies(shown)[-1] == replies(talk(talker, "hi"))[0]


@pytest.mark.parametrize(
    "planted",
    [
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\x9b31m",
        "\x90payload\x9c",
        "over\rwrite",
        "\b\b\b",
        "fake\nyou yes",
        "\u202egnihtyna",
        "\u2066x\u2069",
        "line\u2028end\x85",
        "\ud800",
        "\x7f\x00",
    ],
)
def test_no_text_controls_a_terminal(planted):
    shown = printable(f"a{planted}b")
    assert len(shown) == len(planted) + 2
    assert (shown[0], shown[-1]) == ("a", "b")
    assert shown.isprintable() or "\u200d" in shown


def test_what_people_write_stays_as_it_is():
    for text in ("hello, [bold]you[/]!", "naïve 你好 👩\u200d🔬", "می\u200cخواهم", "a  b"):
        assert printable(text) == text
    assert "".join(map(printable, "a\x1b[2Jb")) == printable("a\x1b[2Jb")


def test_a_setting_that_does_nothing_is_said_to_and_a_wrong_one_is_called_as_it_was_typed(talker):
    lines = "/top-p 0.5", "/seed 3", "/temperature 1", "/top-p 0", "/max-tokens 1e3"
    nucleus, seeded, warm, wrong, part = talk(talker, *lines).strip().splitlines()[-5:]
    assert nucleus.endswith("(greedy: top-p without effect)")
    assert seeded.endswith("(greedy: top-p and seed without effect)")
    assert "greedy" not in warm
    assert wrong == "/top-p: 0.0 must be above 0 and at most 1"
    assert part == "/max-tokens needs a whole number; /help shows how"
