"""A device's ledger: chained, signed, locked, on disk before anything leaves."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedattn import device_ledger
from fedattn.device_ledger import GENESIS, PURPOSE, Answer, DeviceLedger, LedgerState, Lines
from fedattn.errors import RefusalError
from fedattn.privacy.events import PoissonGaussian
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey, verify

ROOT = Path(__file__).parent.parent
KEY = SigningKey.generate(Randomness.seeded(1, "ledger"))
OTHER = SigningKey.generate(Randomness.seeded(2, "ledger"))
EVENT = PoissonGaussian(0.1, 1.0, 5)


def answer(name: str, round_: int = 1) -> Answer:
    return Answer(name, "dd" * 32, round_, "cc", "conversation/local", EVENT)


@pytest.fixture
def ledger(tmp_path):
    return DeviceLedger(tmp_path / "ledger.jsonl", lambda: KEY)


@pytest.fixture(autouse=True)
def _nothing_known():
    device_ledger._known.clear()


def write(ledger, *names, kind="spent"):
    for name in names:
        with ledger.locked() as session:
            session.append(kind, answer(name))


def forget():
    """As after a restart of the process."""
    device_ledger._known.clear()


def refuses(ledger, match=""):
    with pytest.raises(RefusalError, match=f"^spend_ledger: .*{match}") as caught:
        ledger.read()
    return caught.value


def test_what_was_written_is_read_and_counted(ledger):
    assert ledger.read() == Lines()
    assert ledger.read().state == LedgerState(0, GENESIS)
    write(ledger, "a", kind="accepted")
    write(ledger, "a", "b")
    forget()
    lines = ledger.read()
    assert lines.accepted == (answer("a"),)
    assert lines.spent == (answer("a"), answer("b"))
    assert lines.answered == {"a", "b"}
    assert lines.state.count == 4  # the first line opens
    assert lines.state.head == lines.hashes[-1]
    assert oct(ledger.path.stat().st_mode & 0o777) == "0o600"


def test_a_changed_ledger_is_read_again_and_an_unchanged_one_is_not(ledger, monkeypatch):
    write(ledger, "a", kind="accepted")
    stored = ledger.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(device_ledger, "_parse", lambda *_: pytest.fail("was read again"))
        assert ledger.read().answered == {"a"}
    write(ledger, "b")
    ledger.path.write_bytes(stored)  # an old copy, put back
    assert ledger.read().answered == {"a"}
    ledger.path.write_bytes(stored[:-20] + b"0" * 19 + b"\n")
    refuses(ledger, "cannot be read")


def test_few_ledgers_are_remembered_and_a_forgotten_one_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(device_ledger, "REMEMBERED", 2)
    ledgers = [DeviceLedger(tmp_path / f"{name}.jsonl", lambda: KEY) for name in "abc"]
    for turn in ("a", "b"):
        for ledger in ledgers:
            write(ledger, turn)
            assert len(device_ledger._known) <= 2
    ledgers[1].read()
    ledgers[0].read()
    assert list(device_ledger._known) == [ledgers[1].path, ledgers[0].path]
    for ledger in ledgers:
        assert ledger.read().answered == {"a", "b"}


def test_an_older_state_is_in_the_ledger_and_no_other(ledger):
    states = [ledger.read().state]
    for name in "abc":
        write(ledger, name)
        states.append(ledger.read().state)
    lines = ledger.read()
    assert all(lines.contains(state) for state in states)
    last = states[-1]
    for foreign in (
        LedgerState(last.count + 1, last.head),
        LedgerState(last.count - 1, last.head),
        LedgerState(last.count, GENESIS),
        LedgerState(0, last.head),
        LedgerState(-1, last.head),
    ):
        assert not lines.contains(foreign)


def test_each_line_is_signed_over_its_stored_bytes_and_names_the_line_before(ledger):
    write(ledger, "a", "b")
    previous = GENESIS
    for seq, line in enumerate(ledger.path.read_bytes().splitlines()):
        raw = json.loads(line)
        assert (raw["seq"], raw["prev"], raw["key"]) == (seq, previous, KEY.public_bytes.hex())
        signed, _, rest = line.partition(b',"signature":"')
        assert verify(KEY.public_bytes, PURPOSE, signed + b"}", bytes.fromhex(rest[:128].decode()))
        previous = ledger.read().hashes[seq]


def test_two_federations_over_one_data_file_share_its_ledger(tmp_path):
    path = tmp_path / "d.jsonl.ledger.jsonl"
    first, second = (DeviceLedger(path, lambda key=key: key, "d.jsonl") for key in (KEY, OTHER))
    write(first, "a")
    write(second, "b")
    write(first, "c")
    forget()
    for ledger in (first, second):
        assert [item.instruction for item in ledger.read().spent] == ["a", "b", "c"]


def test_a_ledger_of_another_data_file_is_refused(tmp_path):
    path = tmp_path / "d.jsonl.ledger.jsonl"
    write(DeviceLedger(path, lambda: KEY, "d.jsonl"), "a")
    for name in ("e.jsonl", None):
        refuses(DeviceLedger(path, lambda: KEY, name), "was begun for a data file of another name")
    assert b"d.jsonl" not in path.read_bytes()


LINES = ("a", "b", "c")
DAMAGE = {
    "emptied": lambda lines: b"\n",
    "no objects": lambda lines: b"5\n[]\n",
    "not text": lambda lines: b"\xff\xfe\n",
    "a line changed": lambda lines: b"".join(
        [lines[0], lines[1].replace(b'"noise_multiplier":1.0', b'"noise_multiplier":9.0')]
    ),
    "a line gone": lambda lines: b"".join([lines[0], *lines[2:]]),
    "the first line gone": lambda lines: b"".join(lines[1:]),
    "lines swapped": lambda lines: b"".join([lines[0], lines[2], lines[1], lines[3]]),
    "a line twice": lambda lines: b"".join([*lines, lines[-1]]),
    "two beginnings": lambda lines: b"".join([lines[0], *lines]),
    "another signature": lambda lines: b"".join([lines[0], lines[1][:-4] + b'0"}\n']),
    "a torn line in the middle": lambda lines: b"".join(
        [lines[0], lines[1][:40] + b"\n", lines[2]]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_and_left_as_it_is(ledger, damage):
    write(ledger, *LINES)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(DAMAGE[damage](lines))
    before = ledger.path.read_bytes()
    assert str(refuses(ledger)) == "spend_ledger: cannot be read on this device"
    assert ledger.path.read_bytes() == before


def resigned(lines, change):
    """The ledger with its second line changed, signed anew by the owner of the key."""
    raw = json.loads(lines[1])
    del raw["signature"]
    change(raw)
    unsigned = json.dumps(raw, separators=(",", ":")).encode()
    signature = KEY.sign(PURPOSE, unsigned).hex().encode()
    return lines[0] + unsigned[:-1] + b',"signature":"' + signature + b'"}\n'


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(kind="spend"),
        lambda raw: raw.update(kind="open"),
        lambda raw: raw.update(seq=True),
        lambda raw: raw.update(seq=2),
        lambda raw: raw.update(prev=GENESIS),
        lambda raw: raw["body"].update(event={"kind": "less"}),
        lambda raw: raw["body"].update(event={"kind": "poisson_gaussian"}),
        lambda raw: raw["body"].update(instruction=5),
        lambda raw: raw["body"].update(round="1"),
        lambda raw: raw["body"].pop("mode"),
    ],
)
def test_a_signed_line_that_makes_no_sense_is_refused(ledger, change):
    write(ledger, *LINES)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(resigned(lines, lambda raw: None))
    assert len(ledger.read().spent) == 1  # so what is refused is the change
    ledger.path.write_bytes(resigned(lines, change))
    refuses(ledger, "cannot be read")


def test_a_newer_format_is_refused(ledger, monkeypatch):
    monkeypatch.setattr(device_ledger, "FORMAT", "fedattn-device-ledger/2")
    write(ledger, "a")
    monkeypatch.undo()
    forget()
    refuses(ledger, "cannot be read")


@pytest.mark.parametrize("cut", [1, 2, 40, 400])
def test_a_torn_last_line_is_cut_off_and_that_is_recorded(ledger, cut):
    """Its reply never left: what leaves does so after the line is on disk."""
    write(ledger, "a", "b")
    whole, last = ledger.read(), len(ledger.path.read_bytes().splitlines(keepends=True)[-1])
    os.truncate(ledger.path, ledger.path.stat().st_size - cut)
    lines = ledger.read()
    assert lines.spent == (answer("a"),)
    assert lines.hashes[:-1] == whole.hashes[:-1]
    recorded = json.loads(ledger.path.read_bytes().splitlines()[-1])
    assert (recorded["kind"], recorded["body"]) == ("cut", {"bytes": last - cut})
    write(ledger, "c")
    forget()
    assert [item.instruction for item in ledger.read().spent] == ["a", "c"]


def test_zeros_that_a_power_cut_left_behind_are_a_torn_line(ledger):
    write(ledger, "a")
    with ledger.path.open("ab") as file:
        file.write(bytes(512))
    assert [item.instruction for item in ledger.read().spent] == ["a"]
    assert len(ledger.path.read_bytes().splitlines()) == 3


def test_a_torn_first_line_leaves_an_empty_ledger(ledger):
    write(ledger, "a")
    os.truncate(ledger.path, 30)
    assert ledger.read().spent == ()
    kinds = [json.loads(line)["kind"] for line in ledger.path.read_bytes().splitlines()]
    assert kinds == ["open", "cut"]


def test_a_changed_file_is_read_again_by_the_same_process(ledger):
    write(ledger, "a", "b")
    stored = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(stored[:2]))
    assert [item.instruction for item in ledger.read().spent] == ["a"]


def test_file_and_folder_are_synced_once_the_line_is_written(ledger, monkeypatch):
    seen = []
    true_fsync, true_write = os.fsync, os.write

    def fsync(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        seen.append(("fsync", Path(name).name, ledger.path.stat().st_size))
        true_fsync(handle)

    def write_(handle, data):
        seen.append(("write", ledger.path.name, len(data)))
        return true_write(handle, data)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "write", write_)
    write(ledger, "a")
    first = ledger.path.stat().st_size
    write(ledger, "b")
    second = ledger.path.stat().st_size
    name = ledger.path.name
    assert seen == [
        ("write", name, first),
        ("fsync", name, first),
        ("fsync", ledger.path.parent.name, first),
        ("write", name, second - first),
        ("fsync", name, second),
    ]


HOLD = """
import sys
from pathlib import Path
from fedattn.device_ledger import DeviceLedger
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey
key = SigningKey.generate(Randomness.seeded(1, "ledger"))
with DeviceLedger(Path(sys.argv[1]), lambda: key).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(ledger):
    """Another process that holds the ledger's lock until it is told to go on."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ledger.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_while_one_decides(ledger, holder, monkeypatch):
    monkeypatch.setattr(device_ledger, "WAIT_S", 0.2)
    with pytest.raises(RefusalError) as caught, ledger.locked():
        pytest.fail("two processes decided at once")
    assert str(caught.value) == (
        "spend_ledger: another process of this device is writing to it; run one at a time"
    )


def test_a_second_process_that_waits_for_the_first_goes_on(ledger, holder):
    holder.stdin.write("\n")
    holder.stdin.flush()
    write(ledger, "a")
    assert len(ledger.read().spent) == 1


def test_the_lock_of_a_killed_process_is_free(ledger, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    write(ledger, "a")
    assert len(ledger.read().spent) == 1


def test_a_full_disk_refuses(tmp_path):
    """/dev/full takes no byte."""
    path = tmp_path / "ledger.jsonl"
    path.symlink_to("/dev/full")
    ledger = DeviceLedger(path, lambda: KEY)
    with pytest.raises(RefusalError) as caught:
        write(ledger, "a")
    assert str(caught.value) == "spend_ledger: cannot be written on this device"


@pytest.fixture
def fill_up_at():
    """Sets how far files of this process may grow, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_in_mid_line_refuses_and_takes_the_line_back(ledger, fill_up_at):
    write(ledger, "a")
    before = ledger.path.read_bytes()
    fill_up_at(len(before) + 100)
    with pytest.raises(RefusalError, match="cannot be written on this device"):
        write(ledger, "b")
    fill_up_at(resource.RLIM_INFINITY)
    assert ledger.path.read_bytes() == before
    forget()
    write(ledger, "b")
    assert len(ledger.read().spent) == 2


READ_ONLY = """
import sys
from pathlib import Path
from fedattn.device_ledger import DeviceLedger
from fedattn.errors import RefusalError
try:
    with DeviceLedger(Path(sys.argv[1]), lambda: None).locked():
        print("locked")
except RefusalError as error:
    print(error)
"""


@pytest.mark.parametrize("path", ["/proc/ledger.jsonl", "/sys/ledger.jsonl"])
def test_a_place_that_nobody_may_write_to_refuses(path):
    """Not even root: permissions do not bind it, but these take no new file."""
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, path],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "spend_ledger: cannot be written on this device\n"


def test_a_ledger_that_is_no_file_refuses(tmp_path):
    (tmp_path / "ledger.jsonl").mkdir()
    refuses(DeviceLedger(tmp_path / "ledger.jsonl", lambda: KEY), "cannot be written")


def test_without_a_key_nothing_is_written(tmp_path):
    def none():
        raise OSError(28, "No space left on device")

    ledger = DeviceLedger(tmp_path / "ledger.jsonl", none)
    with pytest.raises(RefusalError, match=r"^spend_ledger: its key cannot be read or made"):
        write(ledger, "a")
    assert ledger.path.read_bytes() == b""


@pytest.mark.parametrize("count", [3, 60])
def test_reading_builds_the_lines_once_however_many_there_are(ledger, monkeypatch, count):
    """A copy for each line would make reading quadratic, and the file is locked meanwhile."""
    write(ledger, *map(str, range(count)))
    write(ledger, "last", kind="accepted")
    before, built = ledger.read(), []
    forget()

    class Counted(Lines):
        def __init__(self, *fields):
            built.append(len(fields and fields[0]))
            super().__init__(*fields)

    monkeypatch.setattr(device_ledger, "Lines", Counted)
    again = ledger.read()
    assert [size for size in built if size] == [count + 2]
    assert (again.hashes, again.spent, again.accepted) == (
        before.hashes,
        before.spent,
        before.accepted,
    )
