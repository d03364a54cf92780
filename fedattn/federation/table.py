"""A folder or a request as a person reads it, at 80 columns: fingerprints whole, to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedattn.federation.contents import Contents, MemberLine

_STYLES: Final = {"": "", "ok": "green", "soon": "yellow", "bad": "bold red"}
_STATUS: Final = {"valid": "green", "expired": "yellow", "revoked": "bold red"}
_HEX: Final = 64
_SHORT: Final = 16


def contents_table(shown: Contents) -> RenderableType:
    """Facts, then members."""
    parts: list[RenderableType] = [
        _facts([(fact.label, fact.value, _STYLES[fact.state]) for fact in shown.facts])
    ]
    if shown.members is not None:
        parts += [Text(""), _members(shown.members)]
    return Panel(Group(*parts), title=Text(f"fedattn federation: {shown.kind}"))


def request_table(facts: Sequence[tuple[str, str]]) -> RenderableType:
    """What is asked for, and what a person does before saying yes."""
    advice = (
        "Compare the fingerprint with the one that its owner reads to you by another channel: "
        "whoever is approved can be in every round."
    )
    body = _facts([(label, value, "") for label, value in facts])
    return Panel(Group(body, Text(""), Text(advice, style="dim")), title=Text("request"))


def _facts(lines: Sequence[tuple[str, str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value, style in lines:
        table.add_row(label, _hex(value) if len(value) == _HEX else Text(value, style))
    return table


def _hex(value: str) -> Text:
    """64 hex digits in eight groups, on two lines: eyes lose their place in one."""
    groups = [value[i : i + 8] for i in range(0, _HEX, 8)]
    return Text(" ".join(groups[:4]) + "\n" + " ".join(groups[4:]), style="bold")


def _members(members: Sequence[MemberLine]) -> RenderableType:
    if not members:
        return Text("no members yet", style="dim")
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("member", overflow="fold")
    table.add_column("identity", no_wrap=True)
    table.add_column("node key", no_wrap=True)
    table.add_column("until", no_wrap=True)
    table.add_column("", no_wrap=True)
    for member in members:
        table.add_row(
            member.name,
            Text(member.identity[:_SHORT], "dim"),
            Text(member.node_key[:_SHORT], "dim"),
            member.until,
            Text(member.status, _STATUS.get(member.status, "bold red")),
        )
    return table
