"""Conversations that say the same as an earlier one: decided between records, so a step before.

Never part of training: there, adding one conversation would evict another, and the guarantee is
about adding one. `fedattn data clean` does it over a file, and neighbours are defined on its
output (DESIGN section 3).

Exact: the words of every turn are equal, case, width and signs aside, whoever said them. Near: the
sets of runs of five words overlap by a share (Jaccard) of at least `threshold`. Candidates come
from MinHash and locality-sensitive hashing (Broder 1997; the `datasketch` library, 128
permutations, fixed seed), and each is confirmed by the exact overlap: what is not that alike is
never dropped, and what is may be missed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedattn.data.dialogue import Dialogue

Duplicate = Literal["exact_duplicate", "near_duplicate"]
_Shingles: TypeAlias = npt.NDArray[np.uint64]

PERMUTATIONS: Final = 128
RUN: Final = 5  # words
FEWEST_WORDS: Final = 20  # shorter conversations recur honestly: only exact ones count
_WORD: Final = re.compile(r"\w+")


def duplicates(
    dialogues: Sequence[Dialogue], threshold: float | None = 0.8
) -> list[Duplicate | None]:
    """For each conversation why it goes, or None: the first of those that are alike stays.

    It is compared with earlier ones that stay. `threshold` in (0, 1]; None: exact ones alone.
    Deterministic; over what stays it finds nothing again.
    """
    seen: set[bytes] = set()
    index = None if threshold is None else _index(threshold)
    kept: dict[int, _Shingles] = {}
    found: list[Duplicate | None] = []
    for place, dialogue in enumerate(dialogues):
        turns = [_words(turn.text) for turn in dialogue.turns]
        name = hashlib.sha256("\n".join(map(" ".join, turns)).encode()).digest()
        if name in seen:
            found.append("exact_duplicate")
            continue
        words = [word for turn in turns for word in turn]
        if index is not None and threshold is not None and len(words) >= FEWEST_WORDS:
            shingles = _shingles(words)
            sketch = _sketch(shingles)
            alike = (kept[other] for other in index.query(sketch))
            if any(_jaccard(shingles, other) >= threshold for other in alike):
                found.append("near_duplicate")
                continue
            index.insert(place, sketch, check_duplication=False)
            kept[place] = shingles
        seen.add(name)
        found.append(None)
    return found


def _words(text: str) -> list[str]:
    """Words in one case and width; a turn without a word is its signs."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or folded.split()


def _shingles(words: list[str]) -> _Shingles:
    """The distinct runs of five words as 64-bit hashes, sorted."""
    runs = {" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}
    hashes = b"".join(hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs)
    return np.sort(np.frombuffer(hashes, np.uint64))


def _jaccard(one: _Shingles, two: _Shingles) -> float:
    common = len(np.intersect1d(one, two, assume_unique=True))
    return common / (len(one) + len(two) - common)


def _index(threshold: float) -> Any:
    from datasketch import MinHashLSH

    # Candidates are confirmed: one too many costs time alone, one too few is missed.
    return MinHashLSH(threshold=min(threshold, 0.95), num_perm=PERMUTATIONS, weights=(0.1, 0.9))


def _sketch(shingles: _Shingles) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=_low_half)
    sketch.update_batch(shingles.tolist())
    return sketch


def _low_half(value: int) -> int:
    return value & 0xFFFFFFFF
