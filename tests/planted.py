"""A report in which every text that could come from a person tries to become markup."""

from __future__ import annotations

from pathlib import Path

from fedattn.report import Report
from tests.run_builder import Run, summed

ATTACKS = (
    "<script>document.title='owned'</script>",
    "<img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\">",
    "</svg></text><svg onload=\"document.title='owned'\"><text>",
    "</style><style>body{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "'\" autofocus onfocus=alert(1) x='",
)
WHOLE = " ".join(ATTACKS)


def attention(*turns: tuple[str, ...], reply: tuple[str, ...]) -> dict[str, object]:
    """Even attention of each reply token on each token of the turns."""
    context = [text for turn in turns for text in turn]
    even = [round(1 / len(context), 4)] * len(context)
    return {
        "context": context,
        "turns": [number for number, turn in enumerate(turns) for _ in turn],
        "reply": list(reply),
        "weights": [even for _ in reply],
    }


def plant(report: Report) -> Report:
    """`report` with ATTACKS in samples, attention, notes, sentences, names and config."""
    raw = report.model_dump(mode="json")
    spaced = tuple(f" {text}" for text in ATTACKS)
    raw["samples"] = [
        {
            "context": [WHOLE, *ATTACKS],
            "reply": WHOLE,
            "reply_before": WHOLE,
            "reference": WHOLE,
            "attention": attention(
                ("", WHOLE), *(("", text, "") for text in ATTACKS), reply=spaced
            ),
        }
    ]
    for key in ("notes", "assumptions", "caveats"):
        raw[key] += [WHOLE]
    raw["claims"][1]["adversary"] = WHOLE
    raw["claims"][1]["assumptions"] += [WHOLE]
    raw["config"]["name"] = WHOLE
    raw["config"]["data"]["salt"] = WHOLE
    raw["config"]["data"][WHOLE] = WHOLE
    raw["config"]["faults"] = [{WHOLE: WHOLE}]
    raw["data_set"] = raw["adjacency"] = raw["created_at"] = raw["fedattn_version"] = WHOLE
    raw["authority_held_by"] = WHOLE[:100]
    return Report.model_validate(raw)


def looking(report: Report) -> Report:
    """`report` with samples as a real run has them: words, and where the reply looked."""
    raw = report.model_dump(mode="json")
    context = ("", "hi", ",", " how", " are", " you", "?")
    raw["samples"] = [
        {
            "context": ["hi, how are you?"],
            "reply": "i am fine",
            "reply_before": "the king",
            "attention": attention(context, reply=("i", " am", " fine")),
        }
    ]
    return Report.model_validate(raw)


def planted_run(folder: Path) -> Path:
    """A run whose report is planted, signed and rendered."""
    return Run(folder, config=summed(), report=plant).write()
