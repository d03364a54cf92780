"""A full disk and a read-only directory stop a run clearly, before anything is sent.

Children have the limits that the operating system sets: a file size limit stands for a full disk
(the same calls fail, with another name of the error), an unprivileged user for a read-only folder.
"""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from fedattn.config import config_from_json
from fedattn.ledger import read_ledger
from fedattn.simulate import new_run_dir, simulate
from tests.federation import conversations, tiny, write
from tests.killed import children

NOBODY = 65534


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", conversations(24))


def _limited(bytes_: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))


def _child(config: str, folder: str, limit: Callable[[], None]) -> None:
    """Run in `folder` under a limit; what is raised and every message go to files beside."""
    os.chdir(folder)
    with open("said", "w") as said, open("sent", "w") as sent:

        def tap(message: object) -> None:
            sent.write("message\n")
            sent.flush()

        chosen = config_from_json(config)
        try:
            limit()
            simulate(chosen, new_run_dir(chosen, Path("place") / "run"), taps=[tap])
        except Exception:
            _limited(resource.RLIM_INFINITY)
            said.write(traceback.format_exc())
            said.flush()
            os._exit(3)


def stopped(data: Path, folder: Path, limit: Callable[[], None]) -> str:
    config = tiny(data).canonical_json()
    process = children.Process(target=_child, args=(config, str(folder), limit))
    process.start()
    process.join(120)
    assert process.exitcode == 3
    return (folder / "said").read_text().splitlines()[-1]


def forbidden() -> None:
    if os.getuid() == 0:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)


def a_kilobyte() -> None:
    _limited(1000)


def less_than_a_checkpoint() -> None:
    _limited(60_000)


def test_a_read_only_place_is_named_before_anything_is_sent(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    (folder / "place").mkdir(mode=0o555)
    said = stopped(data, folder, forbidden)
    assert said == (
        "fedattn.errors.RunError: place/run: cannot be made (Permission denied); choose another "
        "--out"
    )
    assert (folder / "sent").read_text() == ""


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (a_kilobyte, "place/run: cannot be written (File too large); nothing was sent"),
        (less_than_a_checkpoint, "nothing was sent; free space or make it writable"),
    ],
)
def test_a_full_disk_is_named_before_anything_is_sent(
    data: Path, tmp_path: Path, limit: Callable[[], None], message: str
) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    said = stopped(data, folder, limit)
    assert said.startswith("fedattn.errors.RunError: ")
    assert message in said
    assert (folder / "sent").read_text() == ""
    assert not (folder / "place" / "run" / "ledger.jsonl").exists()


def test_a_disk_that_fills_up_between_rounds_costs_no_round_and_the_run_goes_on(
    data: Path, tmp_path: Path
) -> None:
    """The next checkpoint's space is taken before an intent; freed, the run is resumed."""
    from fedattn.errors import RunError
    from fedattn.flower.observer import SilentObserver

    class FillsTheDisk(SilentObserver):
        def round_ended(self, summary: object) -> None:
            _limited(60_000)

    config = tiny(data)
    run_dir = new_run_dir(config, tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RunError, match=r"no room for a checkpoint of .* bytes"):
            simulate(config, run_dir, observer=FillsTheDisk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kinds = [entry.kind for entry in read_ledger(run_dir / "ledger.jsonl")]
    assert kinds == ["open", "intent", "release"]
    result = simulate(config, run_dir, is_resumed=True)
    assert result.report.totals.rounds_released == config.train.rounds
    assert result.report.resumes == 1
