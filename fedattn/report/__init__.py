"""The report of a run: `report.json`, signed in `report.sig`, and `report.html` for people.

Every number in it follows from the ledger, the config and what the server measured; an audit
derives it again. `report.sig` is a JSON object with the keys public_key and signature over the
stored bytes of report.json, purpose `fedattn/v1/report`.
"""

from fedattn.privacy.claims import show_epsilon
from fedattn.report.files import (
    HTML_FILE,
    LEDGER_FILE,
    PURPOSE,
    REPORT_FILE,
    SIGNATURE_FILE,
    build_report,
    canonical_signature,
    read_report,
    write_report,
)
from fedattn.report.html import page_sha256, render_html
from fedattn.report.rounds import round_sections
from fedattn.report.shape import REPORT_FORMAT, Report, parse_report, refuse_other

__all__ = [
    "HTML_FILE",
    "LEDGER_FILE",
    "PURPOSE",
    "REPORT_FILE",
    "REPORT_FORMAT",
    "SIGNATURE_FILE",
    "Report",
    "build_report",
    "canonical_signature",
    "page_sha256",
    "parse_report",
    "read_report",
    "refuse_other",
    "render_html",
    "round_sections",
    "show_epsilon",
    "write_report",
]
