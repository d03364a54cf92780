"""The report for people: one self-contained file, rendered from report.json alone."""

from __future__ import annotations

import hashlib
import json
import math
from importlib import resources

from fedattn.report.shape import Report
from fedattn.signing import fingerprint


def render_html(report: Report) -> str:
    """The report for people: one file, no script, no network; every text is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["epsilon"] = show_epsilon
    return environment.from_string(_template().decode()).render(
        report=report,
        config_text=json.dumps(report.config, indent=2, sort_keys=True),
        fingerprint=fingerprint(bytes.fromhex(report.ledger.server_public_key)),
        infinite=math.isinf(report.totals.epsilon),
    )


def template_sha256() -> str:
    """Hex digest of the installed template; a page can be compared if it was rendered with it."""
    return hashlib.sha256(_template()).hexdigest()


def _template() -> bytes:
    return resources.files("fedattn").joinpath("assets/report.html.j2").read_bytes()


def show_epsilon(value: float) -> str:
    """Epsilon for people, rounded up so that it never reads as less than it is.

    >>> show_epsilon(4.6941), show_epsilon(math.inf), show_epsilon(0.0)
    ('4.70', '∞', '0')
    """
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    digits = 2 if value >= 0.1 else 2 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.{digits}f}"
