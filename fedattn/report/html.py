"""The report for people: one self-contained file, rendered from report.json alone."""

from __future__ import annotations

import hashlib
import json
import math
from importlib import resources

from fedattn.errors import RunError
from fedattn.privacy.claims import HYPOTHETICAL, MASKS_SKIPPED, NOT_PRIVATE, show_epsilon
from fedattn.report.shape import Report
from fedattn.signing import fingerprint

_LOUD = (NOT_PRIVATE, MASKS_SKIPPED, HYPOTHETICAL)


def render_html(report: Report) -> str:
    """The report for people: one file, no script, no network; every text is escaped.

    RunError if the report's config lacks a key that the page shows.
    """
    from jinja2 import Environment, StrictUndefined, UndefinedError

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["epsilon"] = show_epsilon
    try:
        return environment.from_string(_template().decode()).render(
            report=report,
            config_text=json.dumps(report.config, indent=2, sort_keys=True),
            fingerprint=fingerprint(bytes.fromhex(report.ledger.server_public_key)),
            infinite=math.isinf,
            alarms=[note for note in report.notes if note.startswith(_LOUD)],
        )
    except UndefinedError as error:
        raise RunError(f"report: {error.message}; the page cannot be rendered") from None


def template_sha256() -> str:
    """Hex digest of the installed template; a page can be compared if it was rendered with it."""
    return hashlib.sha256(_template()).hexdigest()


def _template() -> bytes:
    return resources.files("fedattn").joinpath("assets/report.html.j2").read_bytes()
