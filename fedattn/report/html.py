"""The report for people: one self-contained file, rendered from report.json alone."""

from __future__ import annotations

import hashlib
import json
import math
from importlib import metadata, resources
from typing import Final

from fedattn.errors import RunError
from fedattn.privacy.claims import HYPOTHETICAL, MASKS_SKIPPED, NOT_PRIVATE, show_epsilon
from fedattn.report.shape import Report
from fedattn.signing import fingerprint

_LOUD = (NOT_PRIVATE, MASKS_SKIPPED, HYPOTHETICAL)
_TEMPLATE: Final = "assets/report.html.j2"
_LIBRARIES: Final = ("jinja2", "pygal")
_RENDERED_BY: Final = (  # what decides the page's bytes, beside these libraries
    _TEMPLATE,
    "assets/heat.html.j2",
    "attention_view/attention_map.py",
    "attention_view/page.py",
    "attention_view/visible.py",
    "printable.py",
    "privacy/claims.py",
    "privacy/masks.py",
    "privacy/sentences.py",
    "report/charts.py",
    "report/drawing.py",
    "report/html.py",
    "report/settings.py",
    "signing.py",
)


def render_html(report: Report) -> str:
    """The report for people: one file, no script, no network; every text is escaped.

    RunError if the report's config lacks a key that the page shows, or anything in the report has
    a value that no run has and no page can show.
    """
    from jinja2 import Environment, StrictUndefined, UndefinedError

    from fedattn.attention_view.attention_map import AttentionMap
    from fedattn.attention_view.page import heat_html
    from fedattn.report.charts import charts
    from fedattn.report.settings import settings

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["epsilon"] = show_epsilon
    seen = [sample.attention for sample in report.samples if sample.attention is not None]
    drawn = (
        heat_html(AttentionMap.from_json(each), with_style=place == 0)
        for place, each in enumerate(seen)
    )
    try:
        return environment.from_string(_file(_TEMPLATE).decode()).render(
            report=report,
            charts=charts(report),
            settings=settings(report.config),
            heats=[None if each.attention is None else next(drawn) for each in report.samples],
            config_text=json.dumps(report.config, indent=2, sort_keys=True),
            fingerprint=fingerprint(bytes.fromhex(report.ledger.server_public_key)),
            infinite=math.isinf,
            alarms=[note for note in report.notes if note.startswith(_LOUD)],
        )
    except UndefinedError as error:
        raise RunError(f"report: {error.message}; the page cannot be rendered") from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        kind = type(error).__name__  # (its own text may quote the report)
        raise RunError(f"report: a value that no run has ({kind}); not rendered") from None


def page_sha256() -> str:
    """Hex digest of what renders a page: templates, code, and the versions of its libraries.

    A stored page can be compared with one rendered here if this is equal. Renders nothing.
    """
    digest = hashlib.sha256()
    for name in _RENDERED_BY:
        digest.update(hashlib.sha256(_file(name)).digest())
    for name in _LIBRARIES:
        try:
            digest.update(f"{name} {metadata.version(name)};".encode())
        except metadata.PackageNotFoundError:
            digest.update(b"none")  # it cannot render, so its pages equal nobody's
    return digest.hexdigest()


def _file(name: str) -> bytes:
    return resources.files("fedattn").joinpath(name).read_bytes()
