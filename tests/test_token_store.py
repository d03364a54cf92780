"""A token store gives back the records it was given, or nothing at all."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.records import Record
from fedattn.token_store import FlatRecords, map_tokens

KEY = "a" * 64
turns = st.lists(st.integers(0, 50_260), max_size=6).map(tuple)
parts = st.lists(
    st.lists(
        st.lists(turns, min_size=1, max_size=5).flatmap(
            lambda said: st.builds(
                Record,
                st.tuples(*[st.integers(0, 3)] * len(said)),
                st.just(tuple(said)),
                st.lists(st.integers(0, len(said) - 1), unique=True).map(sorted).map(tuple),
            )
        ),
        max_size=4,
    ),
    max_size=5,
)


def written(path, made, key=KEY):
    flat = FlatRecords()
    for part in made:
        flat.add(part)
        flat.end_part()
    flat.write(path, key)
    return path


@pytest.fixture
def some(make_records):
    return [make_records(5, 1, replies=3), [], make_records(2, 2)]


@given(made=parts)
@settings(max_examples=60, deadline=None)
def test_records_come_back_as_they_were_part_by_part(tmp_path_factory, made):
    path = written(tmp_path_factory.mktemp("store") / "x.tokens", made)
    store = map_tokens(path, KEY)
    assert [list(store.part(index)) for index in range(store.parts)] == made


def test_a_part_is_a_sequence_like_a_list(tmp_path, some):
    part = map_tokens(written(tmp_path / "x", some), KEY).part(0)
    assert len(part) == 5
    assert part[-1] == some[0][-1]
    assert list(part[1:4:2]) == some[0][1:4:2]
    assert list(part[3:]) == some[0][3:]
    for outside in (5, -6):
        with pytest.raises(IndexError):
            part[outside]


@pytest.mark.parametrize("index", [-1, 3])
def test_a_part_that_is_not_there_is_an_error(tmp_path, some, index):
    store = map_tokens(written(tmp_path / "x", some), KEY)
    with pytest.raises(IndexError, match="no such part"):
        store.part(index)


def test_only_the_owner_may_read_it_even_where_the_folder_was_open(tmp_path, some):
    folder = tmp_path / "tokens"
    folder.mkdir(mode=0o755)
    path = written(folder / "x", some)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_torn_file_is_no_store(tmp_path, some):
    path = written(tmp_path / "x", some)
    whole = path.read_bytes()
    for length in (0, 31, 32, 40, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert map_tokens(path, KEY) is None
    path.write_bytes(whole)
    assert map_tokens(path, KEY) is not None


def test_a_file_with_any_changed_byte_is_no_store(tmp_path, some):
    path = written(tmp_path / "x", some)
    whole = bytearray(path.read_bytes())
    for place in range(0, len(whole), 41):
        whole[place] ^= 1
        path.write_bytes(whole)
        assert map_tokens(path, KEY) is None
        whole[place] ^= 1


def test_a_store_of_something_else_is_no_store(tmp_path, some):
    assert map_tokens(written(tmp_path / "x", some, "b" * 64), KEY) is None
    assert map_tokens(tmp_path / "missing", KEY) is None


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path, some):
    path = tmp_path / "x"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: written(path, some), range(24)))
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
    assert list(map_tokens(path, KEY).part(0)) == some[0]


def test_who_reads_a_store_keeps_it_while_another_is_put_in_its_place(tmp_path, some):
    path = written(tmp_path / "x", some)
    store = map_tokens(path, KEY)
    written(path, some[::-1])
    path.unlink()
    assert list(store.part(0)) == some[0]


def test_what_is_mapped_cannot_be_changed_by_a_reader(tmp_path, some):
    store = map_tokens(written(tmp_path / "x", some), KEY)
    for kept in store._arrays.values():
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(kept)[:1] = 0


def test_nothing_prints_what_it_holds(tmp_path, some):
    store = map_tokens(written(tmp_path / "x", some), KEY)
    flat = FlatRecords()
    flat.add(some[0])
    for each in (store, store.part(0), flat):
        assert "<omitted>" in repr(each)
        assert len(repr(each)) < 40
