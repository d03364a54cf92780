"""The shape of `report.json`: every key, its type, its unit. Infinity is the string "infinity"."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from fedattn.attention_view.attention_map import AttentionMap
from fedattn.config import ROWS, Row
from fedattn.entries import Hash, Outcome, Party, SecureAggregation
from fedattn.errors import AttentionError, RunError
from fedattn.printable import printable
from fedattn.privacy.claims import Claim
from fedattn.privacy.gaussian import Bounds

REPORT_FORMAT: Final = "fedattn-report/5"
MOST_CELLS: Final = 100_000  # of one attention map: a page has to show them


def _from_json(value: object) -> object:
    return math.inf if value == "infinity" else value


def _possible(value: float) -> float:
    if math.isnan(value) or value < 0:
        raise ValueError("must be at least 0")
    if 0 < value < 1e-100 or 1e9 < value < math.inf:  # beyond what is ever written or shown
        raise ValueError("must be 0, infinity, or within 1e-100 and 1e9")
    return value


def _to_json(value: float) -> float | str:
    return "infinity" if math.isinf(value) else value


Epsilon: TypeAlias = Annotated[
    float, BeforeValidator(_from_json), AfterValidator(_possible), PlainSerializer(_to_json)
]


def _attention(value: dict[str, Any]) -> dict[str, Any]:
    try:
        found = AttentionMap.from_json(value)
    except AttentionError as error:
        raise ValueError(str(error)) from None
    cells = len(found.context) * len(found.reply)
    if cells > MOST_CELLS:
        raise ValueError(f"attention.weights: has {cells} numbers, must be at most {MOST_CELLS}")
    return found.to_json()


Count = Annotated[int, Field(ge=0)]
Few = Annotated[int, Field(ge=0, le=10**9)]  # a number that a chart can draw
Number = Annotated[float, Field(allow_inf_nan=False)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A block of the report: unknown keys and quiet type changes are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Totals(Section):
    """Rounds by outcome, and what they cost; an intent without outcome is spent all the same.

    The cost is that of this run as it took place, also where it pretends to a larger one.
    """

    rounds_planned: Count
    rounds_intended: Count
    rounds_released: Count
    rounds_aborted: Count
    rounds_skipped: Count  # drawn too few clients: nothing was sent, nothing is spent
    epsilon: Epsilon  # the outsider's
    epsilons: dict[Row, Epsilon]  # by adversary row; what events cost with secret noise
    delta: Number
    budgets: dict[Row, Number]  # the largest epsilon by row, where one was promised


class BoundsSection(Section):
    """What one accountant says."""

    lower: Epsilon
    estimate: Epsilon
    upper: Epsilon

    @classmethod
    def of(cls, bounds: Bounds) -> Self:
        """The section for `bounds`."""
        return cls(lower=bounds.lower, estimate=bounds.estimate, upper=bounds.upper)


class ClaimSection(Section):
    """One adversary's row."""

    row: Row
    adversary: str
    epsilon: Epsilon
    delta: Number
    failures: Number  # the part of delta that random failures take
    unit: str
    assumptions: list[str]

    @classmethod
    def of(cls, claim: Claim) -> Self:
        """The section for `claim`."""
        return cls(
            row=claim.row,
            adversary=claim.adversary,
            epsilon=claim.epsilon,
            delta=claim.delta,
            failures=claim.failures,
            unit=claim.unit,
            assumptions=list(claim.assumptions),
        )


Accountants: TypeAlias = dict[str, BoundsSection]  # pld, prv; or rdp, rdp_exact: from above only


class HypotheticalSection(Section):
    """What a run costs in the world it pretends; the rest of the report is about what it was."""

    cohort: Count
    population: Count
    epsilons: dict[Row, Epsilon]
    claims: list[ClaimSection]
    accountants: Accountants  # of the outsider's row


class ModelSection(Section):
    """Which weights training started from and ended with, and the file that holds them."""

    start_sha256: Hash
    final_sha256: Hash
    file: FileName  # in the run directory
    file_sha256: Hash


def _all_rows(value: dict[Row, float]) -> dict[Row, float]:
    if set(value) != set(ROWS):
        raise ValueError(f"must have the rows {', '.join(ROWS)}")
    return value


Costs: TypeAlias = Annotated[dict[Row, Epsilon], AfterValidator(_all_rows)]


class RoundSection(Section):
    """One round, and what all rounds up to it cost together.

    Costs are those of `Totals` at that time; a skipped round has none, nor have most rounds of a
    run of hundreds. Where clients are sampled in secret nothing counts them: the outsider's epsilon
    is for somebody who does not know how many were drawn.
    """

    number: Few
    outcome: Literal["released", "aborted", "skipped", "unfinished"]  # unfinished: spent, cut off
    contacted: Few | None = None  # clients of the round's cohort
    survivors: Few | None = None  # whose updates are in the sum; of a released round alone
    dropouts: Few | None = None  # contacted and not in the sum
    epsilons: Costs | None = None
    hypothetical_epsilons: Costs | None = None  # in the world that a run pretends


class RoundQuality(Section):
    """Bits per byte on validation users after a round."""

    round: Few
    bpb: Number


class Quality(Section):
    """Bits per byte of held-out replies given their context; lower is better."""

    bpb_before: Number | None = None
    bpb_after: Number | None = None
    examples: Count = 0
    bytes: Count = 0
    protocol: Literal["fedattn-test/1"] | None = None  # (protocol.py) if these are its replies
    validation: list[RoundQuality] = []


class Sample(Section):
    """What the models reply to one opener of our own; no held-out person's words."""

    context: list[str]
    reply: str  # of the final model
    reply_before: str | None = None  # of the starting model
    reference: str | None = None  # what the person said
    attention: Annotated[dict[str, Any], AfterValidator(_attention)] | None = None  # of `reply`

    @model_validator(mode="after")
    def _looks_at_itself(self) -> Self:
        if self.attention is not None:
            seen = AttentionMap.from_json(self.attention)
            if not seen.is_of(self.context, self.reply):
                raise ValueError("attention: is of another reply or context than the sample's")
        return self


class LedgerSection(Section):
    """The ledger this report closes; its last line's hash pins every line before."""

    entries: Count
    head: Hash
    server_public_key: Hash


class Report(Section):
    """The whole report."""

    format: Literal["fedattn-report/5"] = REPORT_FORMAT
    fedattn_version: str
    created_at: str
    config: dict[str, Any]
    config_sha256: Hash
    page_sha256: Hash  # of what renders report.html: template, code and chart library
    data_set: str
    outcome: Outcome
    authority_held_by: Party  # who certified the devices, as the server declares
    secure_aggregation: SecureAggregation  # arithmetic: masks were skipped, rows are as if masked
    resumes: Count  # how often the run was killed and went on
    totals: Totals
    accountants: Accountants  # of the outsider's row; the larger upper bound is its epsilon
    adjacency: str  # what one unit more or less means
    claims: list[ClaimSection]
    hypothetical: HypotheticalSection | None
    rounds: list[RoundSection]
    model: ModelSection
    quality: Quality
    samples: list[Sample]
    ledger: LedgerSection
    assumptions: list[str]
    caveats: list[str]
    notes: list[str]

    def to_bytes(self) -> bytes:
        """What is stored and signed: indented JSON with sorted keys, a newline at the end."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False)
        return text.encode() + b"\n"


def parse_report(stored: bytes, *, where: str = "report.json") -> Report:
    """The report in `stored`; RunError if it is of another format or shape."""
    try:
        raw = json.loads(stored)
        json.dumps(raw, ensure_ascii=False).encode()  # JSON can spell half a character: no text
    except (ValueError, RecursionError):
        raise RunError(f"{where}: not valid JSON of valid Unicode") from None
    stated = raw.get("format") if isinstance(raw, dict) else None
    refuse_other(stated, where=where)
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        raise RunError(f"{where}: {problems(error)}") from None


def refuse_other(stated: object, *, where: str) -> None:
    """RunError if `stated` is a report format, but not the one that this version reads."""
    name, _, version = REPORT_FORMAT.partition("/")
    found = re.fullmatch(rf"{name}/(\d{{1,9}})", str(stated))
    if found and int(found[1]) != int(version):
        age, remedy = "older", "use the fedattn that wrote it"
        if int(found[1]) > int(version):
            age, remedy = "newer", "upgrade fedattn"
        raise RunError(
            f"{where}: {age} format {stated}, this version reads {REPORT_FORMAT}; {remedy}"
        )


def problems(error: ValidationError) -> str:
    """Every problem with its key, on one line that is safe to print: keys may be anybody's."""
    found = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return printable("; ".join(found))
