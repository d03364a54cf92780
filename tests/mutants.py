"""The mutants of `mutate_checks.py`: each check of a client, found and taken out by its syntax."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parent.parent
CHECKS = "fedattn.secagg.checks"
_MEMBERS = ("distinct", "subset", "threshold", "self")
# a call that makes several checks of a set of members, named by its first argument
_SETS = {
    "require_members": _MEMBERS,
    "require_drawn": ("drawn",),
    "_require_seen": (*_MEMBERS, "drawn"),
}
_CALLS = {"check_spend": "spend", "require_usable": "keys.point"}


@dataclass(frozen=True)
class Mutant:
    """One check to take out: the statement at `line` of `module`, or a part of it."""

    module: str
    line: int
    check: str
    function: str
    part: str = ""  # `where` of a set of members, a literal of a loop, or a conjunct's place
    home: str = ""  # the module that asks for the check, if it is not `module`


# ---- finding checks


def path_of(module: str) -> Path:
    """The file of a module."""
    return ROOT / Path(*module.split(".")).with_suffix(".py")


def _functions(module: str) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path_of(module).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def find(module: str, functions: Iterable[str]) -> list[Mutant]:
    """Every check in these functions of a module (none named: in all), by line."""
    wanted = set(functions)
    found = {
        mutant
        for function in _functions(module)
        if not wanted or function.name in wanted
        for mutant in (*_statements(module, function), *_loops(module, function))
    }
    return sorted(found, key=lambda m: (m.module != module, m.line, m.check, m.part))


def _statements(module: str, function: ast.FunctionDef) -> Iterator[Mutant]:
    for node in ast.walk(function):
        check = check_of(node)
        if check is None:
            continue
        if _called(node) in _SETS:
            where = node.value.args[0]
            if isinstance(where, ast.Constant):
                for part in _SETS[_called(node)]:
                    check, line = f"{where.value}.{part}", _set_lines()[part]
                    yield Mutant(CHECKS, line, check, function.name, where.value, module)
            continue
        yield Mutant(module, node.lineno, check, function.name)
        condition = _condition(node)
        if isinstance(condition, ast.BoolOp) and isinstance(condition.op, ast.And):
            for place in range(len(condition.values)):
                part = f"part {place + 1}"
                yield Mutant(module, node.lineno, check, function.name, part)


def _loops(module: str, function: ast.FunctionDef) -> Iterator[Mutant]:
    """A loop over literals checks each of them."""
    for loop in ast.walk(function):
        if isinstance(loop, ast.For) and isinstance(loop.iter, ast.Tuple):
            literals = [e.value for e in loop.iter.elts if isinstance(e, ast.Constant)]
            checks = [check for check in map(check_of, ast.walk(loop)) if check]
            for literal in literals if checks else ():
                yield Mutant(module, loop.lineno, checks[0], function.name, str(literal))


def _set_lines() -> dict[str, int]:
    """The line of each statement in `checks.py` that checks a set of members."""
    return {
        check.rpartition(".")[2]: node.lineno
        for function in _functions(CHECKS)
        if function.name in _SETS
        for node in ast.walk(function)
        if (check := check_of(node)) is not None
    }


def _called(node: ast.AST) -> str:
    call = node.value if isinstance(node, ast.Expr) else None
    target = call.func if isinstance(call, ast.Call) else None
    return getattr(target, "id", getattr(target, "attr", ""))


def check_of(node: ast.AST) -> str | None:
    """The name of the check that a statement makes, None if it makes none."""
    called = _called(node)
    if called in ("require", "_require"):
        return _text(node.value.args[1])
    if called in _SETS:
        return _text(node.value.args[0])
    if called in _CALLS:
        field = node.value.args[0]
        named = f" of {field.attr}" if isinstance(field, ast.Attribute) else ""
        return _CALLS[called] + named
    if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[0], ast.Raise):
        return _raised(node.body[0])
    # a failure that is turned into a refusal
    if isinstance(node, ast.Try) and isinstance(node.handlers[0].body[-1], ast.Raise):
        return _raised(node.handlers[0].body[-1])
    # a condition that has a name, and is raised on below
    if isinstance(node, ast.Assign) and _text(node.targets[0]) == "holds":
        return "holds" if isinstance(node.value, ast.BoolOp) else None
    return None


def _raised(node: ast.Raise) -> str | None:
    call = node.exc
    if not isinstance(call, ast.Call) or not call.args:
        return None
    kind = getattr(call.func, "id", "")
    return _text(call.args[0]) if kind in ("RefusalError", "ProtocolError") else kind


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return ast.unparse(node).removeprefix("f").strip("'\"")


def _condition(node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.Assign):
        return node.value
    return node.value.args[0] if _called(node) in ("require", "_require") else None


# ---- making a mutant


class _Remove(ast.NodeTransformer):
    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.done = mutant, 0

    def visit(self, node: ast.AST) -> ast.AST:
        mutant = self.mutant
        if isinstance(node, ast.stmt) and node.lineno == mutant.line and not self.done:
            changed = self._changed(node)
            if changed is not None:
                self.done += 1
                return ast.fix_missing_locations(ast.copy_location(changed, node))
        return self.generic_visit(node)

    def _changed(self, node: ast.stmt) -> ast.stmt | None:
        part = self.mutant.part
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            node.iter.elts = [e for e in node.iter.elts if getattr(e, "value", None) != part]
            return node
        if check_of(node) is None:
            return None
        if part.startswith("part "):
            condition = _condition(node)
            assert isinstance(condition, ast.BoolOp)
            condition.values[int(part.removeprefix("part ")) - 1] = ast.Constant(True)
            return node
        if part:  # in `require_members`, for one `where` alone
            here = ast.parse(f"where != {part!r}", mode="eval").body
            return ast.If(test=here, body=[node], orelse=[])
        if isinstance(node, ast.Assign):
            return ast.Assign(targets=node.targets, value=ast.Constant(True))
        if isinstance(node, ast.Try):
            node.handlers[0].body = [ast.Pass()]
            return node
        return ast.Pass()


def without(mutant: Mutant, source: bytes) -> ast.Module:
    """The module's syntax without the mutant's check."""
    remove = _Remove(mutant)
    tree = remove.visit(ast.parse(source))
    assert remove.done == 1, f"{mutant}: {remove.done} places"
    assert isinstance(tree, ast.Module)
    return tree


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles one module without the mutant's check; no cached bytecode is read or written."""

    def __init__(self, path: str, mutant: Mutant) -> None:
        super().__init__(mutant.module, path)
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(without(self.mutant, self.get_data(self.path)), self.path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    """Hands the mutant's module to `Loader`, and everything else on."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, fullname, path, target=None):
        if fullname != self.mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = Loader(spec.origin, self.mutant)
        return spec
