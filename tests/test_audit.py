"""Whatever is changed after a run, by whomever, the audit finds it and says where."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.audit import UNPINNED, VERIFIED, audit, audit_table
from fedattn.config import Config, config_from_dict
from fedattn.errors import LedgerError, RunError
from fedattn.ledger import PURPOSE as LEDGER_PURPOSE
from fedattn.report import PURPOSE as REPORT_PURPOSE
from fedattn.signing import SigningKey
from tests.run_builder import (
    DEVICES,
    PIN,
    SERVER,
    STRANGER,
    Run,
    config,
    failed,
    model,
    resign_report,
)

FILES = ("ledger.jsonl", "report.json", "report.sig", "report.html", "model.safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(tmp_path_factory.mktemp("good") / "run").write()


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def lines(run: Path) -> list[bytes]:
    return (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def rejected(run: Path, **pins: Any) -> bool:
    try:
        return not audit(run, **pins).ok
    except (LedgerError, RunError):
        return True


def test_a_good_run_passes_every_check_under_its_pins(good: Path, tmp_path: Path) -> None:
    roster = tmp_path / "roster.txt"
    roster.write_text("# devices\n" + "\n".join(k.public_bytes.hex() for k in DEVICES) + "\n")
    result = audit(good, server_key=PIN, roster=roster)
    assert result.ok, result.verdict
    assert result.verdict == VERIFIED
    assert [finding.number for finding in result.findings] == list(range(1, 28))
    detail = {finding.check: finding.detail for finding in result.findings}
    assert "pinned roster, which knows 4 of 4" in detail["co-signatures"]
    assert detail["instructions"] == "4 recomputed"
    assert result.epsilon == result.claims[0].epsilon > 0
    json.dumps(result.to_json(), allow_nan=False)


def test_without_a_pin_the_verdict_is_integrity_only(good: Path) -> None:
    result = audit(good)
    assert result.ok
    assert result.verdict == UNPINNED == "integrity only, signer unverified"


def test_aborted_and_open_intents_are_paid_for(good: Path) -> None:
    report = json.loads((good / "report.json").read_bytes())
    totals = report["totals"]
    assert (totals["rounds_intended"], totals["rounds_released"], totals["rounds_aborted"]) == (
        4,
        2,
        1,
    )
    from fedattn.privacy.accountants import spend
    from fedattn.privacy.events import PoissonGaussian

    assert totals["epsilon"] == spend([PoissonGaussian(0.1, 1.0, 12)], 1e-5).epsilon


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipping_any_bit_of_any_file_is_found(good: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    path = good / name
    stored = path.read_bytes()
    place = data.draw(st.integers(0, len(stored) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(stored[:place] + bytes([stored[place] ^ bit]) + stored[place + 1 :])
        assert rejected(good)
    finally:
        path.write_bytes(stored)


def test_flipping_the_case_of_a_hex_digit_is_found(run: Path) -> None:
    for name in ("ledger.jsonl", "report.sig"):
        stored = (run / name).read_bytes()
        end = stored.rindex(b'"}')
        place = max(stored.rfind(letter, 0, end) for letter in (b"a", b"b", b"c", b"d", b"f"))
        upper = stored[:place] + stored[place : place + 1].upper() + stored[place + 1 :]
        (run / name).write_bytes(upper)
        assert rejected(run)
        (run / name).write_bytes(stored)


def test_deleting_duplicating_or_swapping_any_line_is_found(run: Path) -> None:
    stored = lines(run)
    forged = []
    for i in range(len(stored)):
        forged.append(stored[:i] + stored[i + 1 :])
        forged.append(stored[: i + 1] + stored[i:])
        forged += [
            [*stored[:i], stored[j], *stored[i + 1 : j], stored[i], *stored[j + 1 :]]
            for j in range(i + 1, len(stored))
        ]
    for ledger in forged:
        (run / "ledger.jsonl").write_bytes(b"".join(ledger))
        assert rejected(run)


def test_truncation_by_whole_lines_is_named(run: Path) -> None:
    stored = lines(run)
    for kept in range(1, len(stored)):
        (run / "ledger.jsonl").write_bytes(b"".join(stored[:kept]))
        assert {"report matches ledger", "ledger grammar"} <= failed(audit(run, server_key=PIN))


def test_an_edited_line_is_named(run: Path) -> None:
    stored = (run / "ledger.jsonl").read_bytes()
    (run / "ledger.jsonl").write_bytes(stored.replace(b'"survivors":3', b'"survivors":4', 1))
    result = audit(run, server_key=PIN)
    assert {"ledger signatures", "ledger chain", "survivors"} <= failed(result)
    assert "4 ledger signatures" in result.verdict


def test_reordered_lines_are_named(run: Path) -> None:
    stored = lines(run)
    stored[1], stored[2] = stored[2], stored[1]
    (run / "ledger.jsonl").write_bytes(b"".join(stored))
    assert {"ledger chain", "ledger grammar"} <= failed(audit(run))


def test_an_edited_report_is_named(run: Path) -> None:
    stored = (run / "report.json").read_bytes()
    (run / "report.json").write_bytes(stored.replace(b"made up", b"made-up"))
    assert "report signature" in failed(audit(run))


def test_an_unreadable_report_is_a_finding_not_a_crash(run: Path) -> None:
    (run / "report.json").write_bytes((run / "report.json").read_bytes()[:-40])
    result = audit(run)
    assert {"report signature", "epsilon", "claims"} <= failed(result)
    assert "ledger chain" not in failed(result)


def test_an_edited_page_and_another_model_file_are_named(run: Path) -> None:
    page = run / "report.html"
    page.write_text(page.read_text().replace("Who could learn", "Who cannot learn"))
    (run / "model.safetensors").write_bytes(b"other weights")
    assert failed(audit(run, server_key=PIN)) == {"report page", "models"}


def test_a_report_from_another_key_is_named(run: Path) -> None:
    resign_report(run, STRANGER, lambda raw: None)
    assert "server key" in failed(audit(run))


def test_a_run_signed_anew_under_another_key_fails_the_pin(tmp_path: Path) -> None:
    forged = Run(tmp_path / "run", server=STRANGER).write()
    assert failed(audit(forged, server_key=PIN)) == {"server key"}
    assert audit(forged).verdict == UNPINNED


def test_a_stranger_without_the_devices_keys_cannot_keep_their_confirmations(
    good: Path, tmp_path: Path
) -> None:
    kept = [json.loads(line)["body"] for line in lines(good)]
    old = iter(body["cosignatures"] for body in kept if "cosignatures" in body)

    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "cosignatures": next(old)} if kind == "release" else body

    forged = Run(tmp_path / "run", server=STRANGER, body=forge).write()
    assert failed(audit(forged)) == {"co-signatures"}


def test_a_server_that_invents_devices_fails_the_pinned_roster(tmp_path: Path) -> None:
    roster = tmp_path / "roster.txt"
    roster.write_text("\n".join(key.public_bytes.hex() for key in DEVICES))
    invented = [SigningKey(bytes([i]) * 32) for i in range(4)]
    forged = Run(tmp_path / "run", devices=invented).write()
    assert audit(forged, server_key=PIN).ok
    result = audit(forged, server_key=PIN, roster=roster)
    assert failed(result) == {"co-signatures"}
    assert any("knows 0 of 4" in finding.detail for finding in result.findings)


@pytest.mark.parametrize("where", ["totals", "accountants", "claims"])
def test_an_epsilon_lowered_by_the_real_server_is_recomputed(run: Path, where: str) -> None:
    def lower(raw: dict[str, Any]) -> None:
        if where == "totals":
            raw["totals"]["epsilon"] *= 1 - 1e-5
        elif where == "claims":
            raw["claims"][2]["epsilon"] *= 0.5
        else:
            raw["accountants"]["prv"]["upper"] *= 0.5

    resign_report(run, SERVER, lower)
    check = "claims" if where == "claims" else "epsilon"
    assert failed(audit(run, server_key=PIN)) == {check}


def test_dropped_assumptions_caveats_and_other_totals_are_named(run: Path) -> None:
    def soften(raw: dict[str, Any]) -> None:
        raw["assumptions"].pop(0)
        raw["totals"]["rounds_intended"] = 2
        raw["totals"]["budgets"]["server"] = 3.0
        raw["outcome"] = "budget"

    resign_report(run, SERVER, soften)
    assert failed(audit(run, server_key=PIN)) == {
        "assumptions and caveats",
        "budget and delta",
        "report matches ledger",
    }


def raise_noise(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    if kind != "intent":
        return body
    return {**body, "event": {**body["event"], "noise_multiplier": 5.0}}


def test_an_intent_with_more_noise_than_the_config_is_named(tmp_path: Path) -> None:
    forged = Run(tmp_path / "run", body=raise_noise).write()
    assert {"events", "instructions"} <= failed(audit(forged, server_key=PIN))


def test_a_history_rewritten_by_the_real_server_loses_its_confirmations(
    good: Path, tmp_path: Path
) -> None:
    old = [json.loads(line)["body"] for line in lines(good)]
    signatures = iter(body["cosignatures"] for body in old if "cosignatures" in body)

    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "cosignatures": next(signatures)} if kind == "release" else body

    # config, intents, report and every signature of the server say sigma = 5, consistently
    forged = Run(tmp_path / "run", config=config(noise_multiplier=5.0), body=forge).write()
    assert failed(audit(forged, server_key=PIN)) == {"co-signatures"}


def test_instructions_are_checked_even_if_devices_signed(tmp_path: Path) -> None:
    def forge(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "instruction_sha256": model(9)} if kind == "intent" else body

    forged = Run(tmp_path / "run", body=forge).write()
    assert "instructions" in failed(audit(forged, server_key=PIN))


@pytest.mark.parametrize(
    ("kind", "key", "value", "check"),
    [
        ("release", "survivors", 2, "survivors"),
        ("release", "intent", model(7), "ledger grammar"),
        ("release", "model_after", model(7), "models"),
        ("intent", "round", 1, "ledger grammar"),
        ("intent", "round", 3, "ledger grammar"),  # a number left out: a round rewound
        ("intent", "threshold", 1, "cohorts"),
        ("close", "skipped", 1, "ledger grammar"),
        ("open", "config_sha256", model(7), "config"),
        ("close", "released", 3, "ledger grammar"),
        ("close", "model_sha256", model(7), "models"),
    ],
)
def test_a_wrong_entry_signed_by_the_real_server_is_named(
    tmp_path: Path, kind: str, key: str, value: Any, check: str
) -> None:
    def forge(found: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, key: value} if found == kind else body

    assert check in failed(audit(Run(tmp_path / "run", body=forge).write(), server_key=PIN))


def test_too_few_or_repeated_confirmations_are_named(tmp_path: Path) -> None:
    for name, signers in (("few", DEVICES[:2]), ("same", [DEVICES[0]] * 3)):
        forged = Run(tmp_path / name, cosigners=signers).write()
        assert failed(audit(forged, server_key=PIN)) == {"co-signatures"}


def test_a_passed_budget_is_named(tmp_path: Path) -> None:
    forged = Run(tmp_path / "run", config=config(epsilon_budget=0.5)).write()
    assert failed(audit(forged, server_key=PIN)) == {"budget and delta"}


@pytest.mark.parametrize("how", ["none", "seeded"])
def test_a_run_without_privacy_says_so_or_fails(tmp_path: Path, how: str) -> None:
    settings = config(unit="none", noise="none", epsilon_budget=None)
    if how == "seeded":
        settings = config().model_copy(update={"seed": 7})
    run = Run(tmp_path / "run", config=settings).write()
    result = audit(run, server_key=PIN)
    assert result.ok, result.verdict
    assert all(claim.epsilon == float("inf") for claim in result.claims)
    assert "NOT PRIVATE" in (run / "report.html").read_text()
    assert (result.to_json()["epsilon"] == "infinity") == (how == "none")
    resign_report(run, SERVER, lambda raw: raw["notes"].clear())
    assert failed(audit(run, server_key=PIN)) == {"NOT PRIVATE labels", "assumptions and caveats"}
    resign_report(run, SERVER, lambda raw: raw["claims"][0].update(epsilon=1.0))
    assert {"claims", "NOT PRIVATE labels"} <= failed(audit(run, server_key=PIN))


def test_missing_partial_torn_and_newer_runs_are_told_apart(good: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run"):
        audit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="not a run directory"):
        audit(tmp_path / "empty")
    partial = Run(tmp_path / "partial").write(close=False)
    with pytest.raises(RunError, match=r"did not finish.*4 round\(s\) spent epsilon \d"):
        audit(partial)
    unreported = Run(tmp_path / "unreported").write(report=False)
    with pytest.raises(RunError, match="closed but has no report"):
        audit(unreported)
    torn = Path(shutil.copytree(good, tmp_path / "torn"))
    (torn / "ledger.jsonl").write_bytes((torn / "ledger.jsonl").read_bytes()[:-9])
    with pytest.raises(LedgerError, match="torn"):
        audit(torn)
    newer = Path(shutil.copytree(good, tmp_path / "newer"))
    stored = (newer / "ledger.jsonl").read_bytes()
    (newer / "ledger.jsonl").write_bytes(stored.replace(b"ledger/5", b"ledger/6"))
    with pytest.raises(LedgerError, match=r"newer format fedattn-ledger/6.*upgrade"):
        audit(newer)
    (newer / "ledger.jsonl").write_bytes(stored)
    stored = (newer / "report.json").read_bytes()
    (newer / "report.json").write_bytes(stored.replace(b"report/5", b"report/12"))
    with pytest.raises(RunError, match=r"newer format fedattn-report/12.*upgrade"):
        audit(newer)


def test_missing_signature_or_model_is_a_finding(run: Path) -> None:
    (run / "report.sig").unlink()
    (run / "model.safetensors").unlink()
    result = audit(run)
    assert failed(result) == {"files present", "report signature", "server key", "models"}


@pytest.mark.parametrize("text", ["", "# nobody\n", "not a key\n", "ab" * 31])
def test_bad_pins_are_bad_input(good: Path, tmp_path: Path, text: str) -> None:
    roster = tmp_path / "roster.txt"
    roster.write_text(text)
    with pytest.raises(RunError, match="roster"):
        audit(good, roster=roster)
    with pytest.raises(RunError, match="--server-key"):
        audit(good, server_key=text)


def test_a_roster_may_name_fingerprints(good: Path, tmp_path: Path) -> None:
    from fedattn.signing import fingerprint

    roster = tmp_path / "roster.txt"
    text = "".join(f"{fingerprint(k.public_bytes).upper()}  # device\n" for k in DEVICES)
    roster.write_text(text)
    assert audit(good, roster=roster).ok


def test_the_table_shows_every_finding(run: Path) -> None:
    from io import StringIO

    from rich.console import Console

    (run / "model.safetensors").write_bytes(b"[red]other")
    out = StringIO()
    Console(file=out, width=150).print(audit_table(audit(run)))
    assert out.getvalue().count("FAILED") == 1
    assert "failed: 17 models" in out.getvalue()


def test_an_audit_imports_neither_torch_nor_opacus_nor_flwr(good: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import fedattn.audit as a; "
        "light = {'scipy', 'dp_accounting', 'prv_accountant', 'rich', 'jinja2'} & set(sys.modules);"
        "assert not light, light; assert a.audit(Path(sys.argv[1])).ok; "
        "heavy = {'torch', 'opacus', 'flwr', 'ray'} & set(sys.modules); assert not heavy, heavy"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(good)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_labels_of_ledger_and_report_differ() -> None:
    assert LEDGER_PURPOSE != REPORT_PURPOSE


def test_stating_another_version_spares_no_instruction_its_check(tmp_path: Path) -> None:
    def forged(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "instruction_sha256": "0" * 64} if kind == "intent" else body

    run = Run(tmp_path / "run", version="9.9.9", body=forged).write()
    finding = next(f for f in audit(run, server_key=PIN).findings if f.check == "instructions")
    assert not finding.ok
    assert "audit with 9.9.9" in finding.detail
    assert audit(Run(tmp_path / "honest", version="9.9.9").write(), server_key=PIN).ok


def test_whom_a_server_certified_itself_is_said_by_report_page_and_audit(tmp_path: Path) -> None:
    from tests.run_builder import summed

    run = Run(tmp_path / "run", config=summed(), held_by="server").write()
    result = audit(run, server_key=PIN)
    assert result.ok
    assert result.authority_held_by == result.to_json()["authority_held_by"] == "server"
    for claim in result.claims:
        warned = any("The server itself held the authority" in line for line in claim.assumptions)
        assert warned == (claim.row in ("server", "collusion"))
    assert any("held by the server" in line for line in result.assumptions)
    page = (run / "report.html").read_text()
    assert "Devices certified by</dt><dd>server, as the server declares" in page
    assert "This was a simulation" not in page
    stranger = Run(tmp_path / "other", config=summed(), held_by="Notary Ltd").write()
    assert "held by Notary Ltd, as the server declares" in (stranger / "report.html").read_text()
    assert "The server itself" not in (stranger / "report.html").read_text()


def test_a_report_that_names_another_authority_than_the_ledger_fails(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", held_by="server").write()
    resign_report(run, SERVER, lambda raw: raw.update(authority_held_by="Notary Ltd"))
    assert "report matches ledger" in failed(audit(run, server_key=PIN))


@pytest.mark.parametrize(
    ("key", "value", "check"),
    [
        ("open_intent", None, "ledger grammar"),  # an open intent that nobody speaks of
        ("open_intent", model(9), "ledger grammar"),
        ("model", model(0), "models"),  # an update undone, or applied twice
        ("roster", [STRANGER.public_bytes.hex()], "cohorts"),
        ("roster", [key.public_bytes.hex() for key in reversed(DEVICES)], "cohorts"),
    ],
)
def test_a_resume_that_tells_another_story_than_the_ledger_is_named(
    tmp_path: Path, key: str, value: Any, check: str
) -> None:
    def forge(found: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, key: value} if found == "resume" else body

    assert check in failed(audit(Run(tmp_path / "run", body=forge).write(), server_key=PIN))


def test_after_a_resume_the_devices_that_are_left_are_asked_every_one(tmp_path: Path) -> None:
    left = [key.public_bytes.hex() for key in DEVICES[1:]]

    def forge(found: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "roster": left} if found == "resume" else body

    run = Run(tmp_path / "run", body=forge, more_rounds=1)  # round 5 asks all four all the same
    assert "cohorts" in failed(audit(run.write(), server_key=PIN))
    honest = Run(
        tmp_path / "honest",
        body=forge,
        config=config().model_copy(
            update={"train": config().train.model_copy(update={"rounds": 5})}
        ),
        more_rounds=1,
        cohort=lambda devices, number: devices[1:] if number == 5 else devices,
    )
    assert audit(honest.write(), server_key=PIN).ok


def without_masks() -> Config:
    return config_from_dict(
        {**config().model_dump(mode="json"), "secure_aggregation": "arithmetic"}
    )


def test_masks_may_be_skipped_by_a_simulation_alone(tmp_path: Path) -> None:
    simulated = Run(tmp_path / "simulated", config=without_masks()).write()
    result = audit(simulated)
    assert result.ok
    assert result.verdict.startswith(f"{UNPINNED}; MASKS SKIPPED")
    held = Run(tmp_path / "held", config=without_masks(), held_by="the notary").write()
    assert failed(audit(held)) == {"masks"}

    def deployed(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "created_by": "deployment"} if kind == "open" else body

    made = Run(tmp_path / "made", config=without_masks(), body=deployed).write()
    assert failed(audit(made)) == {"masks"}


@pytest.mark.parametrize("kind", ["masked", "arithmetic"])
def test_ledger_and_report_say_of_masks_what_the_config_does(tmp_path: Path, kind: str) -> None:
    chosen, other = (config(), "arithmetic") if kind == "masked" else (without_masks(), "masked")
    run = Run(tmp_path / "report", config=chosen).write()

    def change(raw: dict[str, Any]) -> None:
        raw["secure_aggregation"] = other

    resign_report(run, SERVER, change)
    assert failed(audit(run)) == {"masks"}

    def opened(entry: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "secure_aggregation": other} if entry == "open" else body

    assert failed(audit(Run(tmp_path / "open", config=chosen, body=opened).write())) == {"masks"}


def test_a_label_of_skipped_masks_is_neither_missing_nor_added(tmp_path: Path) -> None:
    quiet = Run(tmp_path / "quiet", config=without_masks()).write()
    resign_report(quiet, SERVER, lambda raw: raw.update(notes=[]))
    assert failed(audit(quiet)) == {"masks", "assumptions and caveats"}
    loud = Run(tmp_path / "loud").write()
    resign_report(loud, SERVER, lambda raw: raw["notes"].append("MASKS SKIPPED: not really"))
    assert failed(audit(loud)) == {"masks", "assumptions and caveats"}
