"""The corpus on disk: filtered dialogues a source, sampled shards, and a manifest of it all.

    <corpus>/shards/sampled-<seed>.jsonl   what the network wrote, kept if its facts still hold
    <corpus>/<source>.jsonl                dialogues that are learned from
    <corpus>/held-out/<source>.jsonl       and those that only ever measure
    <corpus>/manifest.json                 sources, licences, hashes, counts

A line holds the id, the turns, and the indices of the replies that count.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedattn.data import Dialogue, Turn
from fedattn.durable import write_durably
from fedattn.pretraining.filters import believed, count_words, key, plain, unfit, words
from fedattn.pretraining.recipe import FilterConfig, Recipe, SourceName
from fedattn.pretraining.sources import (
    SAMPLING_CODE,
    SOURCES,
    Files,
    code_sha256,
    digest,
    sampled_dialogues,
)

FORMAT = "fedattn-corpus/1"
COMMON = 40  # shorter replies are everyday phrases: held out and trained on alike


@dataclass(frozen=True)
class Text:
    """A dialogue and which of its turns are replies to learn from."""

    dialogue: Dialogue
    replies: tuple[int, ...]


def make_corpus(
    recipe: Recipe, folder: Path, npm: Path, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write the corpus of `recipe` into `folder` and return its manifest.

    A folder that holds it already, all hashes right, is left as it is; so is every shard.
    """
    have = _valid_manifest(recipe, folder)
    if have is not None:
        tell(f"corpus {folder}: complete, sha256 {have['sha256'][:16]}")
        return have
    files = {name: SOURCES[name].files(npm) for name in recipe.sources}
    raw = {name: _read(name, files[name], recipe, folder, tell) for name in recipe.sources}
    kept: dict[str, list[Dialogue]] = {}
    dropped: dict[str, Counter[str]] = {}
    for name in recipe.sources:
        dropped[name] = Counter()
        kept[name] = list(_fit(raw[name], recipe.filters, dropped[name]))
    if "sampled" in kept:
        counts = count_words(t.text for d in _all(kept) for t in d.turns)
        known = believed(counts, recipe.filters.min_word_count)
        kept["sampled"] = list(_believable(kept["sampled"], known, dropped["sampled"]))
    return _write(recipe, folder, kept, dropped, files, tell)


def read_corpus(folder: Path, name: str, *, held_out: bool = False) -> list[Text]:
    """The dialogues of one source; none where there is no file."""
    path = folder / "held-out" / f"{name}.jsonl" if held_out else folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [_from_line(line) for line in path.read_text("utf-8").splitlines()]


def _all(kept: dict[str, list[Dialogue]]) -> Iterator[Dialogue]:
    for dialogues in kept.values():
        yield from dialogues


def _read(
    name: SourceName, files: Files, recipe: Recipe, folder: Path, tell: Callable[[str], None]
) -> Iterator[Dialogue]:
    if name != "sampled":
        return SOURCES[name].dialogues(files, recipe)
    from fedattn.pretraining.shards import make_shards  # needs h5py

    assert recipe.sampled is not None
    shards = make_shards(files, recipe.sampled, folder / "shards", tell)
    return (
        dialogue
        for seed, path in shards.items()
        for dialogue in sampled_dialogues(seed, iter(path.read_text("utf-8").splitlines()))
    )


def _fit(
    dialogues: Iterable[Dialogue], config: FilterConfig, dropped: Counter[str]
) -> Iterator[Dialogue]:
    """Dialogues of at least two turns after unfit turns have cut them apart."""
    for dialogue in dialogues:
        turns = [Turn(turn.speaker, plain(turn.text)) for turn in dialogue.turns]
        reasons = [unfit(turn.text, config) for turn in turns]
        dropped.update(reason for reason in reasons if reason)
        yield from _parts(dialogue.id, turns, [reason is None for reason in reasons])


def _believable(
    dialogues: Iterable[Dialogue], known: frozenset[str], dropped: Counter[str]
) -> Iterator[Dialogue]:
    """Without the turns that hold a word that is hardly ever used."""
    for dialogue in dialogues:
        fine = [all(word in known for word in words(turn.text)) for turn in dialogue.turns]
        dropped["unknown word"] += fine.count(False)
        yield from _parts(dialogue.id, list(dialogue.turns), fine)


def _parts(name: str, turns: list[Turn], fine: list[bool]) -> Iterator[Dialogue]:
    """The runs of at least two fine turns."""
    part: list[Turn] = []
    count = 0
    for turn, is_fine in [*zip(turns, fine, strict=True), (None, False)]:
        if is_fine and turn is not None:
            part.append(turn)
            continue
        if len(part) > 1:
            yield Dialogue(name if not count else f"{name}.{count}", tuple(part))
            count += 1
        part = []


def _write(
    recipe: Recipe,
    folder: Path,
    kept: dict[str, list[Dialogue]],
    dropped: dict[str, Counter[str]],
    files: dict[SourceName, Files],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    (folder / "held-out").mkdir(parents=True, exist_ok=True)
    held = {name: [d for d in kept[name] if _is_held_out(d, name, recipe)] for name in kept}
    # a held-out reply that is also trained on would measure memory
    secret = {key(turn.text) for all_d in held.values() for d in all_d for turn in d.turns}
    copies: Counter[str] = Counter()
    entries: dict[str, Any] = {}
    for name in recipe.sources:
        out = {id(dialogue) for dialogue in held[name]}
        rows = []
        for dialogue in kept[name]:
            if id(dialogue) in out:
                continue
            replies = []
            for index in range(1, len(dialogue.turns)):
                same = key(dialogue.turns[index].text)
                copies[same] += 1
                if copies[same] > recipe.filters.max_copies:
                    dropped[name]["copies"] += 1
                elif same in secret and len(same) > COMMON:
                    dropped[name]["held out"] += 1
                else:
                    replies.append(index)
            if replies:
                rows.append(Text(dialogue, tuple(replies)))
        held_rows = [Text(d, tuple(range(1, len(d.turns)))) for d in held[name]]
        source = SOURCES[name]
        entries[name] = {
            "package": source.package,
            "version": source.version,
            "licence": source.licence,
            "files": digest(files[name]),
            "dialogues": len(rows),
            "replies": sum(len(row.replies) for row in rows),
            "reply_bytes": _reply_bytes(rows),
            "sha256": _save(folder / f"{name}.jsonl", rows),
            "held_out_replies": sum(len(row.replies) for row in held_rows),
            "held_out_sha256": _save(folder / "held-out" / f"{name}.jsonl", held_rows),
            "dropped_turns": dict(sorted(dropped[name].items())),
        }
        tell(
            f"{name:10s} {entries[name]['replies']:8,} replies "
            f"{entries[name]['reply_bytes'] / 1e6:6.2f} MB  dropped {dict(dropped[name])}"
        )
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "recipe_sha256": recipe.corpus_sha256(),
        "code_sha256": _code_sha256(),
        "sources": entries,
        "sha256": corpus_sha256(entries),
    }
    write_durably(folder / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest


def corpus_sha256(entries: dict[str, Any]) -> str:
    """Names the text of the corpus, trained on and held out, source by source."""
    lines = (
        f"{name} {entries[name]['sha256']} {entries[name]['held_out_sha256']}\n"
        for name in sorted(entries)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_held_out(dialogue: Dialogue, name: str, recipe: Recipe) -> bool:
    """By a hash of the first turn, so that dialogues that begin alike stay together."""
    share = {str(source): share for source, share in recipe.held_out.items()}.get(name, 0.0)
    drawn = hashlib.sha256(f"held out/{key(dialogue.turns[0].text)}".encode()).digest()
    return int.from_bytes(drawn[:4]) < share * 2**32


def _reply_bytes(rows: list[Text]) -> int:
    return sum(len(row.dialogue.turns[i].text.encode()) for row in rows for i in row.replies)


def _save(path: Path, rows: list[Text]) -> str:
    content = "".join(
        json.dumps(
            {
                "id": row.dialogue.id,
                "turns": [[turn.speaker, turn.text] for turn in row.dialogue.turns],
                "replies": row.replies,
            }
        )
        + "\n"
        for row in rows
    ).encode()
    write_durably(path, content)
    return hashlib.sha256(content).hexdigest()


def _from_line(line: str) -> Text:
    raw = json.loads(line)
    turns = tuple(Turn(speaker, text) for speaker, text in raw["turns"])
    return Text(Dialogue(raw["id"], turns), tuple(raw["replies"]))


def _code_sha256() -> str:
    """Names the code and the text of our own that a corpus is made by."""
    modules = ("corpus", "filters", "sources", "aiml", "prose", "wordnet", *SAMPLING_CODE)
    texts = sorted(Path(__file__).parent.glob("*.yaml"))
    parts = (code_sha256(*modules), *(hashlib.sha256(t.read_bytes()).hexdigest() for t in texts))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _valid_manifest(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """The manifest of `folder` if it is this recipe's and every file has its hash."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        wanted = (FORMAT, recipe.corpus_sha256(), _code_sha256())
        if wanted != tuple(manifest[said] for said in ("format", "recipe_sha256", "code_sha256")):
            return None
        for name, entry in manifest["sources"].items():
            for place, digest_of in (("", "sha256"), ("held-out", "held_out_sha256")):
                content = (folder / place / f"{name}.jsonl").read_bytes()
                if hashlib.sha256(content).hexdigest() != entry[digest_of]:
                    return None
    except (OSError, ValueError, KeyError):
        return None
    return manifest
