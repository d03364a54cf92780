"""What a tracker may be told of a run: an allowlist, taken field by field.

Nothing here is computed from a device's data except through a release that its epsilon pays for.
Where clients are sampled in secret, the size of a cohort is left out: the outsider's epsilon is for
somebody who does not read the ledger, and a dashboard's readers are outsiders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final, TypeAlias

from fedattn.config import ROWS, Config
from fedattn.flower.observer import RoundSummary
from fedattn.report import Report

Values: TypeAlias = dict[str, float]
Plain: TypeAlias = str | int | float | bool

EPSILON: Final = {row: f"epsilon/{row}" for row in ROWS}
HYPOTHETICAL_EPSILON: Final = {row: f"epsilon_hypothetical/{row}" for row in ROWS}
PARTICIPATION: Final = ("round/cohort", "round/survivors", "round/dropouts")

MEANINGS: Final[Mapping[str, str]] = {
    "round/released": "1: the round released a model; 0: it was aborted, and is spent all the same",
    "round/cohort": "clients that were asked; in the ledger; left out where they are sampled",
    "round/survivors": "clients in the sum; in the ledger; left out where they are sampled",
    "round/dropouts": "cohort - survivors",
    **{key: f"spent so far against: {row}" for row, key in EPSILON.items()},
    **{
        key: f"HYPOTHETICAL: spent so far against: {row}, in the world that the run pretends"
        for row, key in HYPOTHETICAL_EPSILON.items()
    },
    "bpb/validation": "bits per byte of held-out replies that the server may see, after a round",
    "bpb/test": "bits per byte of held-out test replies: at step 0 before, at the last step after",
    "total/released": "rounds that released a model",
    "total/aborted": "rounds that were aborted",
    "total/skipped": "rounds that were not started: too few clients were drawn",
}
KEYS: Final = frozenset(MEANINGS)  # every key that can ever be logged


def start_values(bpb: float) -> Values:
    """Before the first round: the quality that training starts from."""
    return {"bpb/test": bpb}


def round_values(summary: RoundSummary, config: Config) -> Values:
    """A round as it ended; keys of KEYS alone, whatever else a summary may come to hold.

    Infinite epsilons stay infinite.
    """
    values: Values = {"round/released": float(summary.is_released)}
    if config.privacy.client_rate == 1:
        values["round/cohort"] = summary.cohort
        if summary.is_released:  # an abort's survivors are nowhere public
            values["round/survivors"] = summary.survivors
            values["round/dropouts"] = summary.cohort - summary.survivors
    values.update({EPSILON[row]: summary.epsilons[row] for row in ROWS})
    if summary.hypothetical is not None:
        pretended = summary.hypothetical
        values.update({HYPOTHETICAL_EPSILON[row]: pretended[row] for row in ROWS})
    if summary.validation_bpb is not None:
        values["bpb/validation"] = summary.validation_bpb
    return values


def report_values(report: Report) -> Values:
    """The end of a run, from its signed report: no sample, no text, no name."""
    totals = report.totals
    values: Values = {
        "total/released": totals.rounds_released,
        "total/aborted": totals.rounds_aborted,
        "total/skipped": totals.rounds_skipped,
        **{EPSILON[row]: totals.epsilons[row] for row in ROWS},
    }
    if report.hypothetical is not None:
        pretended = report.hypothetical.epsilons
        values.update({HYPOTHETICAL_EPSILON[row]: pretended[row] for row in ROWS})
    if report.quality.bpb_after is not None:
        values["bpb/test"] = report.quality.bpb_after
    return values


def config_values(config: Config) -> dict[str, Plain]:
    """The config, which the ledger publishes, as `section.key`; of a path its last part alone.

    A key that is not set (null) is left out.
    """
    return dict(_flat(config.model_dump(mode="json"), ""))


def _flat(value: Any, key: str) -> list[tuple[str, Plain]]:
    if isinstance(value, dict):
        pairs = [(f"{key}.{name}" if key else str(name), each) for name, each in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{key}.{place}", each) for place, each in enumerate(value)]
    elif value is None:
        return []
    else:
        return [(key, _without_folder(value) if isinstance(value, str) else value)]
    return [found for name, each in pairs for found in _flat(each, name)]


def _without_folder(text: str) -> str:
    """`text`; if it names a place on this machine, its last part.

    >>> _without_folder("/home/ann/chats.jsonl"), _without_folder("bias_norm")
    ('chats.jsonl', 'bias_norm')
    """
    return PureWindowsPath(PurePosixPath(text).name).name
