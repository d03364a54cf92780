"""Imports point left only (DESIGN section 7), and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room is a module or a folder right under the package. An import points to a strictly lower
# rank, or stays in its room.
RANKS: dict[str, float] = {
    "fedattn": 0,  # the package itself: its version
    "fedattn.assets": 0,
    "fedattn.errors": 0,
    "fedattn.checks": 1,
    "fedattn.randomness": 1,
    "fedattn.modulus": 1,
    "fedattn.durable": 1,
    "fedattn.rotation": 1.5,
    "fedattn.skellam": 1.5,
    "fedattn.normal": 1.4,
    "fedattn.noise": 1.5,
    "fedattn.rounding": 1.7,
    "fedattn.signing": 2,
    "fedattn.own_keys": 2.2,
    "fedattn.certificates": 2.5,
    "fedattn.config": 3,
    "fedattn.mechanism": 3.5,
    "fedattn.data": 4,
    "fedattn.tokens": 4,
    "fedattn.attention": 3.8,
    "fedattn.model": 4,
    "fedattn.decoding": 4.5,
    "fedattn.update": 4,
    "fedattn.privacy": 4,
    "fedattn.counters": 4,
    "fedattn.parameters": 3.7,
    "fedattn.start": 4.5,
    "fedattn.lora": 4.7,
    "fedattn.secagg": 4,
    "fedattn.records": 4.5,
    "fedattn.protocol": 4.7,
    "fedattn.paraphrase": 1,
    "fedattn.augment": 4.7,
    "fedattn.token_store": 4.6,
    "fedattn.kept_tokens": 4.8,
    "fedattn.batches": 5,
    "fedattn.footprint": 4.8,
    "fedattn.memory": 5,
    "fedattn.placement": 5,
    "fedattn.checkpoint": 5,
    "fedattn.entries": 5,
    "fedattn.encoding": 5,
    "fedattn.server_optimizer": 5,
    "fedattn.instruction": 6,
    "fedattn.clipping": 6,
    "fedattn.client_change": 6,
    "fedattn.printable": 1,
    "fedattn.sampling": 1,
    "fedattn.growing": 5,
    "fedattn.generate": 6,
    "fedattn.ledger": 6,
    "fedattn.attention_view": 6.5,
    "fedattn.federation": 7,
    "fedattn.train": 7,
    "fedattn.report": 7,
    "fedattn.resumption": 7,
    "fedattn.device": 8,
    "fedattn.contribution": 7.5,
    "fedattn.device_ledger": 6,
    "fedattn.policy": 6.5,
    "fedattn.audit": 8,
    "fedattn.plan": 8,
    "fedattn.pretraining": 8,
    "fedattn.cli_pretrain": 9.8,
    "fedattn.flower": 9,
    "fedattn.simulate": 9.5,
    "fedattn.compressed": 5,
    "fedattn.released": 7.5,
    "fedattn.found_model": 8,
    "fedattn.export": 8.5,
    "fedattn.answers": 9,
    "fedattn.compress": 9.5,
    "fedattn.dialogue_generator": 8.5,
    "fedattn.chat": 9.5,
    "fedattn.tracking": 9.6,
    "fedattn.progress": 9.7,
    "fedattn.cli_federation": 9.8,
    "fedattn.cli_data": 9.8,
    "fedattn.cli_model": 9.8,
    "fedattn.cli_run": 9.8,
    "fedattn.cli_attention": 9.8,
    "fedattn.cli": 10,
    "server": 11,
    "clients": 11,
}
MAY_IMPORT = {
    "flwr": {"fedattn.flower", "fedattn.simulate", "server", "clients"},
    "opacus": {"fedattn.clipping"},
    "ray": {"fedattn.flower"},
}
HEAVY = ("torch", "flwr", "ray", "opacus")


def room(module: str) -> str:
    """`fedattn.secagg.wire` is in the room `fedattn.secagg`, `server.app` in `server`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "fedattn" else parts[0]


def sources() -> list[tuple[str, Path]]:
    """Every module of the three packages with its file."""
    found = []
    for package in ("fedattn", "server", "clients"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "assets" in path.relative_to(ROOT).parts[:-2]:
                continue  # the app bundle's files: data, not modules
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


MODULES = {name for name, _ in sources()}


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that `path` imports, at whatever depth of its code, with the line."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield (name if name in MODULES else base), node.lineno


@pytest.mark.parametrize(("module", "path"), sources(), ids=[name for name, _ in sources()])
def test_imports_point_left_only(module, path):
    here = room(module)
    if here == "fedattn":
        return  # the door: who asks it for a generator gets one (and nobody else waits, see below)
    assert here in RANKS, (
        f"{here} has no rank: say where it belongs in RANKS of tests/test_layers.py "
        "(DESIGN section 7: imports point to a lower rank only)"
    )
    for target, line in imports(module, path):
        there = room(target)
        if there == here or target.split(".")[0] not in ("fedattn", "server", "clients"):
            continue
        assert there in RANKS, f"{path}:{line}: {there} has no rank in tests/test_layers.py"
        assert RANKS[there] < RANKS[here], (
            f"{path}:{line}: {here} (rank {RANKS[here]:g}) imports {there} "
            f"(rank {RANKS[there]:g}); move what both need to the left"
        )


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_flwr_opacus_and_ray_have_one_place_each(library):
    places = {
        room(module)
        for module, path in sources()
        for target, _ in imports(module, path)
        if target.split(".")[0] == library
    }
    assert places <= MAY_IMPORT[library]


@pytest.mark.parametrize("library", ["numpy", "cryptography"])
def test_secure_aggregation_needs_numpy_and_cryptography_alone(library):
    outside = {
        target.split(".")[0]
        for module, path in sources()
        if room(module) == "fedattn.secagg"
        for target, _ in imports(module, path)
    } - set(sys.stdlib_module_names)
    assert outside <= {"fedattn", "numpy", "cryptography"}
    assert library in outside


def test_every_rank_names_a_room_that_exists():
    assert set(RANKS) <= {room(name) for name in MODULES} | {"fedattn"}


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from fedattn.cli import app",
        "if TYPE_CHECKING:\n    import fedattn.cli",
        "from fedattn import cli",
        "from .cli import app",
        "from . import cli as other",
    ],
)
def test_the_walk_sees_every_way_to_import(tmp_path, text):
    path = tmp_path / "errors.py"
    path.write_text(text)
    assert [target for target, _ in imports("fedattn.errors", path)] == ["fedattn.cli"]


def heavy_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter holds after `code`."""
    report = f"; import sys; print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + report],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    return set(done.stderr.split())


HELP = """
import sys
from fedattn.cli import app
try:
    app({argv!r})
except SystemExit as end:
    assert not end.code, end.code
pass"""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["audit", "--help"],
        ["plan", "--help"],
        ["simulate", "--help"],
        ["data", "inspect", "--help"],
        ["data", "clean", "--help"],
        ["attention", "--help"],
        ["chat", "--help"],
        ["compress", "--help"],
        ["pretrain", "--help"],
        ["federation", "--help"],
        ["federation", "approve", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(argv):
    assert heavy_after(HELP.format(argv=argv)) == set()


@pytest.mark.parametrize("module", ["audit", "ledger", "report", "instruction", "secagg.client"])
def test_what_an_auditor_runs_imports_nothing_heavy(module):
    assert heavy_after(f"import fedattn.{module}") == set()


def test_the_package_itself_imports_nothing_heavy_until_it_is_asked_for_a_generator():
    assert heavy_after("import fedattn") == set()
    assert "torch" in heavy_after("import fedattn; fedattn.load")


def test_the_check_for_heavy_imports_would_notice():
    assert "torch" in heavy_after("import fedattn.model")
