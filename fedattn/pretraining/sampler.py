"""Dialogues sampled from the character LSTM: many streams at once, stopped by count.

Every stream works on one dialogue: the network goes on with each opening turn by turn, and sees
the end of the turn before, so that a reply has to do with its context. It was trained on windows
of at most 40 characters and breaks when run on statefully: so the last `window` characters are read
anew, zeros before them, and then `stride` characters are drawn from the running state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedattn.pretraining.character_lstm import CharacterLSTM, State
from fedattn.pretraining.openers import Openers, Opening

TRAINED_LENGTH = 40  # characters, zeros before shorter texts
END = "<s>"  # before and after every text that the network was trained on
# what may be drawn; brackets, slashes and the like open tags, links and names of sub-forums
WRITABLE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?'\"-:;$%&()+"


@dataclass(frozen=True)
class Sampling:
    """How to sample; a shard is a function of this, the weights and the openers."""

    seed: int
    characters: int  # stop when as many have been drawn
    streams: int = 512
    window: int = 33
    stride: int = 8
    turns: int = 6
    longest_turn: int = 140
    temperatures: tuple[float, float] = (0.5, 1.0)


@dataclass
class _Stream:
    """One dialogue in the making."""

    openings: list[Opening]
    turns: list[str] = field(default_factory=list)
    before: str = ""  # what the network sees of the turn before
    text: str = ""
    drawn: int = 0

    def open_next(self) -> bool:
        """Start the next turn that needs the network; False when the dialogue is complete."""
        while self.openings:
            opening = self.openings.pop(0)
            if opening.goes_on:
                self.text = opening.text
                return True
            self._close(opening.text)
        return False

    def draw(self, character: str, longest: int) -> bool:
        """Add a character, END or none; True when the turn ended with it."""
        if character != END:
            self.text += character
        self.drawn += 1
        if character == END:
            self._close(self.text.strip())
        elif len(self.text) >= longest:
            self._close(self.text.rpartition(" ")[0].strip())  # not half a word
        else:
            return False
        return True

    def _close(self, text: str) -> None:
        if text:
            self.turns.append(text)
            self.before = text if text[-1] in ".!?" else f"{text}."

    def seen(self) -> str:
        """What stands before the next character."""
        return f"{self.before} {self.text}" if self.before else self.text


@torch.no_grad()
def sample(
    network: CharacterLSTM, vocabulary: Mapping[str, int], openers: Openers, sampling: Sampling
) -> Iterator[tuple[str, ...]]:
    """Dialogues as turns, as they are completed, until `characters` have been drawn.

    The draws are seeded; on another machine the arithmetic of torch may round another way, and
    a stream then goes another way from there on.
    """
    rng = np.random.default_rng(sampling.seed)
    noise = torch.Generator().manual_seed(sampling.seed)
    names = [END, *WRITABLE]
    allowed = torch.tensor([vocabulary[name] for name in names])
    streams = [_new(openers, rng, sampling) for _ in range(sampling.streams)]
    low, high = sampling.temperatures
    temperature = torch.from_numpy(rng.uniform(low, high, (sampling.streams, 1))).float()
    padding = _after_padding(network, TRAINED_LENGTH - sampling.window, sampling.streams)
    count = 0
    while count < sampling.characters:
        state = padding
        windows = _windows(streams, vocabulary, sampling.window)
        for position in range(sampling.window):
            state = network.step(state, windows[:, position])
        picks = np.empty((sampling.stride, sampling.streams), np.int64)
        for place in range(sampling.stride):
            chosen = _draw(network, state, allowed, temperature, noise)
            picks[place] = chosen.numpy()
            if place + 1 < sampling.stride:
                state = network.step(state, allowed[chosen])
        for index, stream in enumerate(streams):
            for pick in picks[:, index]:
                count += 1
                if not stream.draw(names[pick], sampling.longest_turn):
                    continue
                if not stream.open_next():
                    yield tuple(stream.turns)
                    streams[index] = _new(openers, rng, sampling)
                    temperature[index] = float(rng.uniform(low, high))
                break  # what else was drawn follows a turn that has ended


def _new(openers: Openers, rng: np.random.Generator, sampling: Sampling) -> _Stream:
    while True:
        stream = _Stream(openers.draw(rng, sampling.turns))
        if stream.open_next():
            return stream


def _windows(streams: list[_Stream], vocabulary: Mapping[str, int], length: int) -> Tensor:
    """The last `length` ids (streams, length) of every stream, END first, zeros before it."""
    rows = np.zeros((len(streams), length), np.int64)
    for row, stream in zip(rows, streams, strict=True):
        text = stream.seen()[-length:]
        ids = [vocabulary.get(character, 0) for character in text]
        if len(ids) < length:
            ids.insert(0, vocabulary[END])
        row[length - len(ids) :] = ids
    return torch.from_numpy(rows)


def _after_padding(network: CharacterLSTM, zeros: int, streams: int) -> State:
    """The state after as many zeros."""
    state = network.start(streams)
    for _ in range(zeros):
        state = network.step(state, torch.zeros(streams, dtype=torch.int64))
    return state


def _draw(
    network: CharacterLSTM,
    state: State,
    allowed: Tensor,
    temperature: Tensor,
    noise: torch.Generator,
) -> Tensor:
    """One index into `allowed` a stream, by a race of exponentials."""
    scores = network.logits(state)[:, allowed] / temperature
    waiting = torch.empty_like(scores).exponential_(generator=noise)
    return (torch.softmax(scores, 1) / waiting).argmax(1)
