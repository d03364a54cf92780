"""From YAML, JSON or a mapping to a config; ConfigError names key, value and remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedattn.config.section import Section
from fedattn.config.shape import Config
from fedattn.errors import ConfigError

_Shape = TypeVar("_Shape", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key said twice and reads 1e-5 as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "not a mapping", node.start_mark)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "odd key", key.start_mark)
            if key.value in seen:
                raise ConfigError(
                    f"line {key.start_mark.line + 1}: key `{key.value}` is said twice; keep one"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `a.b=c` overrides; ConfigError names key, value, remedy."""
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config; `fedattn init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as UTF-8 text ({type(error).__name__})"
        ) from None
    return parse_config(text, overrides, where=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, where: str = "config") -> Config:
    """The config in YAML `text`; `where` names it in errors."""
    raw = parse_mapping(text, where=where, example="configs/quickstart.yaml")
    for override in overrides:
        apply_override(raw, override)
    return config_from_dict(raw, where=where)


def parse_mapping(text: str, *, where: str, example: str) -> dict[str, Any]:
    """The mapping in YAML `text`; ConfigError names `where`, the line and an `example` to see."""
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except (yaml.YAMLError, ValueError, AttributeError) as error:  # PyYAML's own, of a bad `!!int`
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML; check indentation and colons") from None
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must be a mapping of keys; see {example}")
    return raw


def config_from_dict(raw: object, *, where: str = "config") -> Config:
    """Validate a plain mapping; ConfigError lists every problem with its key."""
    return validated(Config, raw, where=where)


def validated(shape: type[_Shape], raw: object, *, where: str) -> _Shape:
    """`raw` as a `shape`; ConfigError lists every problem with its key, its value, a remedy."""
    try:
        return shape.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise ConfigError(f"{where}: {error.error_count()} problem(s)\n{problems}") from None


def config_from_json(text: str) -> Config:
    """The config in `canonical_json` form, as reports and messages carry it."""
    try:
        raw = json.loads(text)
    except ValueError:
        raise ConfigError("config: not valid JSON") from None
    return config_from_dict(raw)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set the key that `a.b=c` names; ConfigError if it cannot be."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: must look like section.key=value")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except (yaml.YAMLError, ValueError, AttributeError):
        raise ConfigError(f"--set {key}: the value is not valid YAML") from None
    except ConfigError as error:
        raise ConfigError(f"--set {key}: {error}") from None
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = raw.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: `{parent}` is a value, not a section")
        raw = inner
    raw[leaf] = value


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(whole config)"
    kind, value, message = item["type"], item["input"], item["msg"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; remove it or correct its spelling"
    if kind == "missing":
        return f"{key}: missing; add it"
    message = message.removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list | BaseModel) else f" is {value!r}"
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"
