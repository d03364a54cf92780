"""Worker processes answer as this one would; one that dies costs the reply of one client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto

from fedattn.config import Fault
from fedattn.errors import RunError
from fedattn.flower.arrays import to_array
from fedattn.flower.embedded.contexts import LazyNodes
from fedattn.flower.exchange import replies
from fedattn.flower.grid import EmbeddedGrid
from fedattn.flower.summing import SummingGrid
from tests.flower.answering import LENGTH, Mistaken, Take, words_of

APP, NODES, ROOT = "tests.flower.answering:app", range(1, 7), Path(__file__).parents[2]
MODEL = np.arange(LENGTH, dtype=np.float32)


def engine(workers=2, nodes=NODES, **keywords):
    lazy = LazyNodes(nodes, lambda node: {"partition-id": node})
    return EmbeddedGrid(APP, lazy, workers=workers, **keywords)


@pytest.fixture(scope="module")
def grid():
    with engine() as made:
        yield made


def asked(grid, message_type="query.advertise", group="1", nodes=NODES, model=None, **do):
    """Messages to `nodes`; do={"3": "kill"} is what becomes of client 3."""
    contents = {"do": ConfigRecord({f"{key}": value for key, value in do.items()})}
    shared = None if model is None else ArrayRecord({"vector": to_array(model)})
    made = []
    for node in nodes:
        content = RecordDict(dict(contents))
        if shared is not None:
            content["model"] = shared
        made.append(grid.create_message(content, message_type, node, group))
    return made


def summed(grid, extract=None, **keywords):
    """What a summed push gave: replies by node, and the sum."""
    messages = asked(grid, "train.upload", **keywords)
    names = grid.push_summed(messages, LENGTH, extract or Take())
    found = {reply.metadata.src_node_id: reply for reply in grid.pull_messages(names)}
    return found, grid.take_sum()


def expected(nodes, model=None):
    """The obvious sum."""
    total = np.zeros(LENGTH, np.uint64)
    for node in nodes:
        total += words_of(node)
        if model is not None:
            total += model.view(np.uint32)
    return (total % 2**32).astype(np.uint32)


def errors(found):
    return {node: reply.error.code for node, reply in found.items() if reply.has_error()}


def test_any_worker_answers_for_any_client_and_a_state_lasts(grid):
    counts, pids = [], set()
    for _ in range(3):
        answers = [reply.content["r"] for reply in grid.send_and_receive(asked(grid))]
        assert sorted(answer["node"] for answer in answers) == list(NODES)
        counts.append({answer["count"] for answer in answers})
        pids |= {answer["pid"] for answer in answers}
    assert counts == [{1}, {2}, {3}]
    assert pids == set(grid.worker_pids)
    assert os.getpid() not in pids
    assert grid._contexts.held == len(NODES)


def test_what_a_client_raises_is_the_same_error_reply_as_in_this_process(grid):
    found, _ = summed(grid, **{"4": "raise"})
    with engine(0) as here:
        alike, _ = summed(here, **{"4": "raise"})
    assert errors(found) == errors(alike) == {4: ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
    assert found[4].error.reason == alike[4].error.reason


@pytest.mark.parametrize("workers", [0, 2])
def test_the_sum_is_of_who_had_words_and_their_replies_stay_small(grid, workers):
    with engine(0) as here:
        used = grid if workers else here
        assert isinstance(used, SummingGrid)
        found, total = summed(used, model=MODEL, **{"2": "raise", "5": "refuse"})
        np.testing.assert_array_equal(total, expected((1, 3, 4, 6), MODEL))
        assert list(found[1].content["v"]) == []
        assert dict(found[5].content["no"]) == {"rule": "a"}
        with pytest.raises(RunError, match="its sum was taken"):
            used.take_sum()


@pytest.mark.parametrize("fate", ["kill", "exit", "kill before the reply"])
def test_a_worker_that_dies_costs_one_reply_once_and_the_sum_has_the_others(grid, tmp_path, fate):
    before = set(grid.worker_pids)
    found, total = summed(grid, tried=str(tmp_path), **{"2": fate})
    assert errors(found) == {2: ErrorCode.CLIENT_APP_CRASHED}
    assert sorted(found) == list(NODES)
    np.testing.assert_array_equal(total, expected((1, 3, 4, 5, 6)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(node): "x"
        for node in NODES  # nobody is asked twice
    }
    answers, _ = summed(grid)
    assert errors(answers) == {}
    assert before - set(grid.worker_pids)


def test_every_worker_may_die_and_the_queue_goes_on(grid):
    found, total = summed(grid, **{"1": "kill", "2": "kill", "3": "exit", "6": "kill"})
    assert errors(found) == dict.fromkeys((1, 2, 3, 6), ErrorCode.CLIENT_APP_CRASHED)
    np.testing.assert_array_equal(total, expected((4, 5)))


def test_an_interrupt_is_the_parents(grid):
    list(grid.send_and_receive(asked(grid)))
    before = grid.worker_pids
    for pid in before:
        os.kill(pid, signal.SIGINT)
    assert len(list(grid.send_and_receive(asked(grid)))) == len(NODES)
    assert grid.worker_pids == before


def test_the_sum_is_of_the_replies_that_were_yielded_whenever_they_were_made(grid):
    names = grid.push_summed(asked(grid, "train.upload"), LENGTH, Take())
    pulled = grid.pull_messages(names)
    some = [next(pulled).metadata.src_node_id for _ in range(2)]
    pulled.close()  # others are under way
    left = [name for name in names if name not in {f"x{node}" for node in some}]
    third = next(iter(grid.pull_messages([left[-1]])))
    some.append(third.metadata.src_node_id)
    time.sleep(0.2)  # what is under way gets done
    np.testing.assert_array_equal(grid.take_sum(), expected(some))
    assert len(some) == 3
    rest = {reply.metadata.src_node_id for reply in grid.pull_messages(names)}
    assert rest == set(NODES) - set(some)


def test_a_reply_withheld_counts_once_it_is_yielded(grid):
    names = grid.push_summed(asked(grid, "train.upload"), LENGTH, Take())
    first = grid.pull_messages(names)
    next(first)
    first.close()
    assert len(list(grid.pull_messages(names))) == len(NODES) - 1
    np.testing.assert_array_equal(grid.take_sum(), expected(NODES))


def test_two_pushes_may_be_pulled_in_turns(grid):
    sizes = [asked(grid, "train.upload", model=MODEL + i) for i in range(2)]
    plain = grid.push_messages(sizes[0])
    names = grid.push_summed(sizes[1], LENGTH, Take())
    for name, other in zip(names, plain, strict=True):
        assert len(list(grid.pull_messages([name]))) == 1
        (reply,) = grid.pull_messages([other])
        node = reply.metadata.src_node_id
        (words,) = reply.content["v"].to_numpy_ndarrays()
        np.testing.assert_array_equal(words, expected([node], MODEL))
    np.testing.assert_array_equal(grid.take_sum(), expected(NODES, MODEL + 1))


def test_a_reply_read_in_another_pull_is_yielded_by_the_one_that_asked(grid):
    def hang(*_):
        raise TimeoutError("a worker that has nothing to say was waited for")

    names = grid.push_summed(asked(grid, "train.upload", nodes=(1, 2, 3)), LENGTH, Take())
    others = grid.push_messages(asked(grid, nodes=(4,)))
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(15)
    try:
        pulled = grid.pull_messages(names)
        next(pulled)
        time.sleep(0.3)  # both workers have something to say
        next(pulled)
        assert len(list(grid.pull_messages(others))) == 1
        assert len(list(pulled)) == 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    np.testing.assert_array_equal(grid.take_sum(), expected((1, 2, 3)))


def test_a_fault_after_the_upload_is_spent_and_not_summed():
    faults = [Fault(round=1, stage="upload", clients=2)]
    for workers in (0, 1):
        with engine(workers, faults=faults) as grid:
            found, total = summed(grid)
            assert errors(found) == dict.fromkeys((1, 2), ErrorCode.NODE_UNAVAILABLE)
            np.testing.assert_array_equal(total, expected((3, 4, 5, 6)))


def test_taps_see_here_the_same_whole_messages_with_workers_and_without():
    seen = {}
    for workers in (0, 2):
        crossed = []
        with engine(workers, taps=[crossed.append]) as grid:
            _, total = summed(grid, model=MODEL, **{"3": "refuse"})
        np.testing.assert_array_equal(total, expected((1, 2, 4, 5, 6), MODEL))
        seen[workers] = sorted(
            (
                message.metadata.src_node_id,
                message.metadata.dst_node_id,
                message.metadata.reply_to_message_id,
                recorddict_to_proto(message.content).SerializeToString(),
            )
            for message in crossed
        )
        seen[workers] = [each for each in seen[workers] if each[3]]
    assert len(seen[0]) == 2 * len(NODES)
    # (an extracted reply was seen whole, then lost its words: a tap that keeps a message sees both)
    assert seen[0] == seen[2]


def test_a_wait_for_replies_has_no_pauses_and_asks_for_all_at_once(grid, monkeypatch):
    monkeypatch.setattr("fedattn.flower.exchange.time.sleep", None)
    found = [place for place, _ in replies(grid, asked(grid), 0.0)]
    assert sorted(found) == list(range(len(NODES)))


def test_a_client_computes_with_the_threads_that_it_is_given_wherever_it_runs():
    import torch

    before = torch.get_num_threads()
    with engine(0, threads=3) as here:
        (reply,) = here.send_and_receive(asked(here, nodes=[1]))
    assert reply.content["r"]["threads"] == 3
    assert torch.get_num_threads() == before
    with engine(1, threads=3) as there:
        (reply,) = there.send_and_receive(asked(there, nodes=[1]))
    assert reply.content["r"]["omp"] == "3"


# ---- what does not work says so


def test_a_client_app_that_only_this_process_has_is_refused():
    with pytest.raises(RunError, match="name its place, 'module:attribute'"):
        EmbeddedGrid(lambda message, context: None, {1: {}}, workers=1)


@pytest.mark.parametrize(
    ("app", "problem"),
    [("tests.flower.answering", "must be 'module:attribute'"), ("no.such:app", "No module named")],
)
def test_an_app_that_a_worker_cannot_import_ends_the_run_by_name(app, problem):
    with EmbeddedGrid(app, {1: {}}, workers=1) as grid, pytest.raises(RunError, match=problem):
        grid.send_and_receive(asked(grid, nodes=[1]))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("fails", "problem"), [(True, "failed: KeyError"), (False, r"must be uint32 \(3000,\)")]
)
def test_a_mistake_in_an_extract_is_no_clients_error(workers, fails, problem):
    with engine(workers) as grid, pytest.raises(RunError, match=problem):
        summed(grid, Mistaken(fails), nodes=[1])


def test_a_closed_engine_answers_nobody():
    grid = engine(1)
    names = grid.push_messages(asked(grid))
    grid.close()
    grid.close()
    with pytest.raises(RunError, match="is closed"):
        list(grid.pull_messages(names))


# ---- nothing is left behind


def shared_memory():
    """Descriptors and mappings of nameless shared memory in this process."""
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    mapped = Path("/proc/self/maps").read_text()
    return sum("memfd:fedattn" in link for link in links) + mapped.count("memfd:fedattn")


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["summed", "plain", "summed and pulled by hand"])
def test_pushes_left_early_take_no_memory(grid, how):
    def push(messages):
        if how == "plain":
            return grid.push_messages(messages)
        return grid.push_summed(messages, LENGTH, Take())

    held = []
    for _ in range(30):
        messages = asked(grid, "train.upload", model=MODEL)
        if how == "summed and pulled by hand":
            next(grid.pull_messages(push(messages)))
        else:
            next(replies(grid, messages, 5.0, push))
        held.append(shared_memory())
    found, total = summed(grid, model=MODEL)
    assert len(found) == len(NODES)
    np.testing.assert_array_equal(total, expected(NODES, MODEL))
    assert held[-1] < held[0] + 15  # (each worker still has its last push open: at most 5 each)
    assert not grid._pending
    assert not grid._push_of
    assert not grid._ready


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_processes_and_shared_memory_are_gone_after_the_end(is_interrupted):
    held, pids = shared_memory(), []

    def run():
        with engine() as grid:
            names = grid.push_summed(asked(grid, "train.upload", model=MODEL), LENGTH, Take())
            pulled = grid.pull_messages(names)
            next(pulled)
            pids.extend(grid.worker_pids)
            assert shared_memory() > held
            if is_interrupted:
                raise KeyboardInterrupt
            list(pulled)
            grid.take_sum()

    if is_interrupted:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    assert len(pids) == 2
    assert not any(is_there(pid) for pid in pids)
    assert shared_memory() == held


PARENT = """
from tests.flower.test_workers import asked, engine, summed
grid = engine()
list(grid.send_and_receive(asked(grid)))
print(*grid.worker_pids, flush=True)
summed(grid, **{"1": "sleep", "2": "sleep"})
"""  # both workers are busy with a client when their parent is killed


def test_workers_end_with_a_parent_that_is_killed():
    named = set(Path("/dev/shm").iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)
        assert len(pids) == 2
        assert all(is_there(pid) for pid in pids)
        parent.kill()
    deadline = time.monotonic() + 20
    while any(is_there(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_there(pid) for pid in pids)
    assert set(Path("/dev/shm").iterdir()) <= named


def test_an_engine_forgotten_is_closed():
    grid = engine(1)
    list(grid.send_and_receive(asked(grid, nodes=[1])))
    (pid,) = grid.worker_pids
    del grid
    assert not is_there(pid)


# ---- memory


def test_memory_does_not_grow_with_the_population():
    def held(population):
        tracemalloc.start()
        with engine(0, range(1, population + 1), faults=[]) as grid:
            for _ in range(2):
                grid.send_and_receive(asked(grid, nodes=range(1, 21)))
            assert len(grid.get_node_ids()) == population
            assert grid._contexts.held == 20
            found, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    held(100)
    assert held(100_000) < held(1_000) + 20_000
