"""Remove each check of a client once, and ask whether an attack notices.

    python -m tests.mutate_checks [--table] [--only TEXT]

A mutant is one module with one check taken out, made while it is imported: nothing is written. It
runs in a process of its own, against tests/attacks/ first and tests/secagg/test_client_checks.py
if no attack notices. Exits 1 if a mutant survives both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants import ROOT, Finder, Mutant, find, path_of

_THEMES = ("keys", "rosters", "packets", "replays", "survivors", "seeds", "neighbours", "masks")
PROTOCOL = [f"tests/attacks/test_{theme}.py" for theme in _THEMES]
DEVICE = [f"tests/attacks/test_{theme}.py" for theme in ("instructions", "flower", "masks")]
WITHOUT_MASKS = ["tests/attacks/test_masks.py", "tests/secagg/test_arithmetic.py"]
CERTIFICATES = ["tests/attacks/test_rosters.py", "tests/test_certificates.py"]
FALLBACK = ["tests/secagg/test_client_checks.py"]
# module -> (the attacks that reach it, its functions that a client runs; none named: all)
TARGETS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "fedattn.secagg.client": (PROTOCOL, ()),
    "fedattn.secagg.arithmetic": (
        WITHOUT_MASKS,
        ("from_bytes", "upload", "confirm", "_require_unmasked", "_require_step"),
    ),
    "fedattn.secagg.shown": (PROTOCOL, ()),
    "fedattn.secagg.wire": (PROTOCOL, ("body_of", "open_signed", "open_server")),
    "fedattn.secagg.keys": (PROTOCOL, ("require_usable",)),
    "fedattn.secagg.spec": (PROTOCOL, ("__post_init__", "public_key")),
    "fedattn.secagg.confirmation": (PROTOCOL, ()),
    "fedattn.device": ([*DEVICE, "tests/test_limits.py"], ()),
    "fedattn.policy.rules": ([*DEVICE, "tests/test_policy.py", "tests/test_limits.py"], ()),
    "fedattn.instruction": (DEVICE, ("parse",)),
    "fedattn.flower.client_app": (DEVICE, ("_resume", "_resume_masked", "_check_intent")),
    "fedattn.certificates.authority": (CERTIFICATES, ("timeless_authority",)),
    "fedattn.certificates.documents": (
        CERTIFICATES,
        (
            "ed25519",
            "parse",
            "parse_request",
            "require_member_of",
            "require_end",
            "require_valid",
            "utc",
        ),
    ),
    "fedattn.certificates.members": (
        CERTIFICATES,
        ("_member", "_names", "load_roster", "read_member", "read_request", "split_pem"),
    ),
    "fedattn.certificates.revocations": (
        ["tests/test_revocations.py"],
        ("read_revocations", "later_revocations", "_parse"),
    ),
}
# what a check is about -> the attacks to try first, so that a mutant is caught early
LIKELY = {
    "message": ("replays", "keys"),
    "decode": ("replays",),
    "stage": ("replays", "flower"),
    "identity": ("replays",),
    "UpdateError": ("replays",),
    "spec": ("rosters", "neighbours"),
    "mailbox": ("packets", "rosters", "neighbours"),
    "survivors": ("rosters", "neighbours"),
    "confirmations": ("rosters", "survivors"),
    "confirmation": ("survivors",),
    "statement": ("survivors",),
    "masks": ("masks",),
    "notices": ("neighbours",),
    "holds": ("flower",),
    "intent": ("flower",),
}
# (module, function, check): why the client refuses the same messages by the same name without it
EQUIVALENT = {
    ("fedattn.secagg.wire", "open_signed", "decode"): "`Reader.take` refuses what is shorter",
}


@dataclass(frozen=True)
class Verdict:
    """What the tests said; `caught_by` is empty for a survivor."""

    mutant: Mutant
    caught_by: str


def find_all(only: str = "") -> list[Mutant]:
    """Every check of a client, in the order of the targets; `only` those with this text."""
    return [
        mutant
        for module, (_, functions) in TARGETS.items()
        if path_of(module).exists()
        for mutant in find(module, functions)
        if only in f"{module} {mutant.check}"
    ]


def run_here(mutant: Mutant | None, files: Sequence[str]) -> int:
    """In a fresh process: the mutant takes its module's place, then pytest runs."""
    import pytest

    if mutant is not None:
        assert not any(name.startswith("fedattn") for name in sys.modules)
        sys.meta_path.insert(0, Finder(mutant))
    quiet = ["-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    return int(pytest.main([*quiet, *files]))


def run(mutant: Mutant | None, files: Sequence[str]) -> str:
    """The first test that fails, "" if all pass; RuntimeError if it is not a test that failed."""
    argument = "null" if mutant is None else json.dumps(asdict(mutant))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.mutate_checks", "--here", "--mutant", argument, *files],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HYPOTHESIS_STORAGE_DIRECTORY": folder},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    failed = re.search(r"^FAILED (\S+?)::([^\[\s]+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return f"{Path(failed[1]).name}::{failed[2]}"
    if done.returncode == 0:
        return ""
    raise RuntimeError(f"{mutant}: pytest exit {done.returncode}\n{done.stdout}\n{done.stderr}")


def judge(mutant: Mutant) -> Verdict:
    """Attacks first; then the unit tests of the client's checks."""
    themes = LIKELY.get(mutant.check.partition(".")[0], ())
    files = TARGETS[mutant.home or mutant.module][0]
    files = sorted(files, key=lambda file: not any(theme in file for theme in themes))
    caught = run(mutant, files)
    if not caught and mutant.module.startswith("fedattn.secagg"):
        caught = run(mutant, FALLBACK)
    return Verdict(mutant, caught)


def judge_all(mutants: Sequence[Mutant], processes: int = 2) -> Iterator[Verdict]:
    """The verdicts in order, as they come; the tests must pass as they are."""
    with ThreadPoolExecutor(processes) as pool:
        for failed in pool.map(lambda files: run(None, files), (PROTOCOL, DEVICE, CERTIFICATES)):
            if failed:
                raise RuntimeError(f"fails without any mutant: {failed}")
        yield from pool.map(judge, mutants)


def reason(mutant: Mutant) -> str | None:
    """Why this mutant behaves like the original, if it does."""
    return EQUIVALENT.get((mutant.module, mutant.function, mutant.check))


def row(verdict: Verdict) -> str:
    mutant = verdict.mutant
    home = mutant.home or mutant.module
    file = home.removeprefix("fedattn.").replace(".", "/") + ".py"
    part = f" ({mutant.part})" if mutant.part and not mutant.check.startswith(mutant.part) else ""
    unseen = f"equivalent: {reason(mutant)}" if reason(mutant) else "**nothing**"
    caught = f"`{verdict.caught_by}`" if verdict.caught_by else unseen
    return f"| `{mutant.check}`{part} | `{file}` `{mutant.function}` | {caught} |"


def in_copy(copy: Path, arguments: Sequence[str]) -> int:
    """The same command on a copy, so that edits during the minutes it takes do not matter."""
    for name in ("fedattn", "tests"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "pyproject.toml", copy)
    command = [sys.executable, "-m", "tests.mutate_checks", "--here", *arguments]
    return subprocess.run(command, cwd=copy, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the Markdown table")
    parser.add_argument("--only", default="", help="mutants whose check or module has this text")
    parser.add_argument("--here", action="store_true", help="not in a copy of the files")
    parser.add_argument("--mutant", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.here:
        with tempfile.TemporaryDirectory() as copy:
            return in_copy(Path(copy), sys.argv[1:])
    if chosen.mutant is not None:
        fields = json.loads(chosen.mutant)
        return run_here(fields and Mutant(**fields), chosen.files)
    began = time.monotonic()
    mutants, survivors = find_all(chosen.only), []
    if chosen.table:
        print("| check | disabled in | caught by |\n|---|---|---|")
    for verdict in judge_all(mutants):
        if chosen.table:
            print(row(verdict), flush=True)
        if not verdict.caught_by and reason(verdict.mutant) is None:
            survivors.append(verdict)
    for verdict in survivors:
        print(f"SURVIVES: {verdict.mutant}", file=sys.stderr)
    print(
        f"{len(mutants)} mutants, {len(survivors)} survive, {time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
