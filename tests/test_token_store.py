"""A token store gives back the records it was given, or nothing at all."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedattn.records import Record
from fedattn.token_store import FlatRecords, map_tokens, private_folder

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


def test_only_the_owner_may_read_it(tmp_path, some):
    path = written(tmp_path / "tokens" / "x", some)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o720, 0o701, 0o777])
def test_a_folder_that_others_may_open_is_refused_and_left_as_it_is(tmp_path, some, mode):
    path = written(tmp_path / "tokens" / "x", some)
    path.parent.chmod(mode)
    assert map_tokens(path, KEY) is None
    with pytest.raises(PermissionError, match=r"not this user's alone; delete it"):
        written(path.with_name("y"), some)
    assert [each.name for each in path.parent.iterdir()] == ["x"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o666])
def test_a_file_that_others_may_read_or_write_is_no_store(tmp_path, some, mode):
    path = written(tmp_path / "x", some)
    path.chmod(mode)
    assert map_tokens(path, KEY) is None
    path.chmod(0o600)
    assert map_tokens(path, KEY) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
@pytest.mark.parametrize("place", [".", "x"])
def test_what_another_user_owns_is_no_store(tmp_path, some, place):
    path = written(tmp_path / "tokens" / "x", some)
    os.chown(path.parent / place, 12_345, 12_345)
    assert map_tokens(path, KEY) is None


def test_who_is_another_user_has_no_store_and_writes_none_there(tmp_path, some, monkeypatch):
    path, other = written(tmp_path / "x", some), os.geteuid() + 1
    monkeypatch.setattr("os.geteuid", lambda: other)
    assert map_tokens(path, KEY) is None
    with pytest.raises(PermissionError, match="not this user's alone"):
        written(tmp_path / "y", some)
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_no_symbolic_link_is_followed(tmp_path, some):
    path = written(tmp_path / "real" / "x", some)
    (tmp_path / "link").symlink_to(path.parent)
    (path.parent / "y").symlink_to(path)
    assert map_tokens(tmp_path / "link" / "x", KEY) is None
    assert map_tokens(path.parent / "y", KEY) is None
    with pytest.raises(NotADirectoryError):
        written(tmp_path / "link" / "z", some)
    before = path.stat()
    written(path.parent / "y", some)  # takes the link's place
    assert path.stat() == before
    assert not (path.parent / "y").is_symlink()


def test_a_pipe_or_a_folder_is_no_store(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for name in ("pipe", "folder"):
        assert map_tokens(tmp_path / name, KEY) is None


def test_what_is_mapped_is_what_was_hashed_though_another_takes_its_name(
    tmp_path, some, monkeypatch
):
    path = written(tmp_path / "x", some)
    other = written(tmp_path / "y", [[], []])
    digest = hashlib.file_digest

    def hash_and_swap(file, kind):
        hashed = digest(file, kind)
        other.rename(path)
        return hashed

    monkeypatch.setattr("hashlib.file_digest", hash_and_swap)
    store = map_tokens(path, KEY)
    assert not other.exists()
    assert [list(store.part(index)) for index in range(store.parts)] == some


def test_a_folder_is_held_though_another_takes_its_name(tmp_path):
    (tmp_path / "a").mkdir(mode=0o700)
    with private_folder(tmp_path / "a") as folder:
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir(mode=0o777)
        os.close(os.open("x", os.O_CREAT, 0o600, dir_fd=folder))
    assert (tmp_path / "b" / "x").exists()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(folder)


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
