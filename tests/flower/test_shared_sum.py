"""Sums in shared memory: the reader has the additions that it knows of, whatever else was made."""

from __future__ import annotations

import os

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedattn.errors import RunError
from fedattn.flower.embedded.memory import Segment, allocate, read, write
from fedattn.flower.embedded.pushes import Sum
from fedattn.flower.embedded.shared_sum import SharedSum
from fedattn.flower.summing import extracted

LENGTH = 5


def words(seed):
    return np.random.default_rng(seed).integers(0, 2**32, LENGTH, dtype=np.uint32)


def slow(seeds):
    """The obvious sum."""
    return [sum(int(words(seed)[i]) for seed in seeds) % 2**32 for i in range(LENGTH)]


def pair():
    """The writer's mapping and the reader's, of one memory."""
    reader = SharedSum.create(LENGTH)
    return SharedSum(Segment(os.dup(reader.segment.descriptor)), LENGTH), reader


def test_each_addition_is_seen_through_another_mapping_and_wraps():
    writer, reader = pair()
    for made in range(1, 6):
        assert writer.add(words(made)) == made == reader.count
        assert reader.through(made).tolist() == slow(range(1, made + 1))
        assert reader.words(made).tolist() == words(made).tolist()


@pytest.mark.parametrize("made", [0, 1, 2, 3])
def test_an_addition_cut_off_anywhere_leaves_the_sum_before_it(made):
    for place in range(LENGTH + 1):
        writer, reader = pair()
        for seed in range(made):
            writer.add(words(seed))
        next_one = writer._at(made + 1)
        next_one[:place] = 99  # as far as it came
        assert reader.count == made
        assert reader.through(made).tolist() == slow(range(made))


def test_an_addition_complete_but_not_read_of_is_not_in_the_sum():
    writer, reader = pair()
    writer.add(words(1))
    writer.add(words(2))
    assert reader.count == 2
    assert reader.through(1).tolist() == slow([1])


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=12))
def test_the_total_is_of_exactly_the_yielded_replies_of_all_workers(steps):
    """(worker, whether its reply is wanted when it comes, whether it has words)"""
    total, yielded, withheld = Sum(LENGTH, lambda reply: None, is_here=False), [], []
    writers = {}
    for number, (worker, is_wanted, has_words) in enumerate(steps):
        if worker not in writers:
            segment = total.part(worker).segment
            writers[worker] = SharedSum(Segment(os.dup(segment.descriptor)), LENGTH)
        added = writers[worker].add(words(number)) if has_words else 0
        total.read(worker, f"message-{number}", added, is_wanted=is_wanted)
        if has_words:
            (yielded if is_wanted else withheld).append(number)
    claimed = withheld[::2]
    for number in claimed:
        total.claim(f"message-{number}")
    for writer in writers.values():
        writer.add(words(1000))  # of replies that never came
    assert total.total().tolist() == slow([*yielded, *claimed])


@pytest.mark.parametrize("wrong", [np.zeros(LENGTH, np.int64), np.zeros((1, LENGTH), np.uint32)])
def test_words_of_another_type_or_shape_are_refused(wrong):
    class Reply:
        content = RecordDict()

        @staticmethod
        def has_error():
            return False

    with pytest.raises(RunError, match=r"must be uint32 \(5,\)"):
        extracted(lambda reply: wrong, Reply, LENGTH)


def test_shared_memory_has_no_name_and_says_when_it_is_too_short():
    segment = Segment(allocate())
    write(segment.descriptor, [b"ab", b"", b"cde"])
    assert read(segment.descriptor, 3, 1) == b"bcd"
    with pytest.raises(EOFError, match="holds 4 of 9 bytes"):
        read(segment.descriptor, 9, 1)
    assert not os.get_inheritable(segment.descriptor)
    segment.close()
    segment.close()
