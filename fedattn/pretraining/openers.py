"""Everyday chat openers: what the sampled network is asked to go on with.

openers.yaml was written by hand for this project, as were the whole dialogues of talk.yaml. A draw
is a list of turns; a turn is either complete or the beginning of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import yaml

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_WORD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Opening:
    """How a turn begins; `goes_on` says whether the network has to finish it."""

    text: str
    goes_on: bool


@dataclass(frozen=True)
class Openers:
    """Scripts and single replies with the words that fill them."""

    words: Mapping[str, tuple[str, ...]]
    scripts: tuple[str, ...]
    replies: tuple[str, ...]

    def draw(self, rng: np.random.Generator, turns: int) -> list[Opening]:
        """One script, followed by replies, if there are any, until there are `turns` turns."""
        script = str(rng.choice(self.scripts)).split("|")
        missing = max(0, turns - len(script)) if self.replies else 0
        free = [str(text) for text in rng.choice(self.replies, missing)] if missing else []
        chosen: dict[str, str] = {}
        return [self._fill(part.strip(), chosen, rng) for part in [*script, *free]]

    def _fill(self, text: str, chosen: dict[str, str], rng: np.random.Generator) -> Opening:
        text = _CHOICE.sub(lambda found: str(rng.choice(found[1].split("/"))), text)
        for name in _WORD.findall(text):
            if name not in chosen:
                chosen[name] = str(rng.choice(self.words[name]))
        text = _WORD.sub(lambda found: chosen[found[1]], text)
        return Opening(text.removesuffix("~"), text.endswith("~"))


def load_openers() -> Openers:
    """What the sampled network goes on with."""
    return _load("openers.yaml")


def load_talk() -> Openers:
    """Whole dialogues: nothing in them goes on."""
    return _load("talk.yaml")


def _load(name: str) -> Openers:
    raw = yaml.safe_load((files("fedattn.pretraining") / name).read_text("utf-8"))
    words = {word: tuple(map(str, values)) for word, values in raw["words"].items()}
    return Openers(words, tuple(raw["scripts"]), tuple(raw.get("replies", ())))
