"""A simulation tokenises its source once; each process reads what its memory would hold."""

from __future__ import annotations

import os

import pytest

from fedattn import kept_tokens
from fedattn.contribution import records
from fedattn.data import load_partition
from fedattn.errors import DataError
from fedattn.flower.evaluation import Evaluation
from fedattn.kept_tokens import VARIABLE, open_tokens, write_tokens
from fedattn.policy import OwnData
from fedattn.records import tokenize
from fedattn.token_store import FlatRecords
from fedattn.tokens import Tokenizer
from tests.federation import conversations, tiny, write

TOKENIZER = Tokenizer(260)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_tokens, "SMALL", 0)
    monkeypatch.delenv(VARIABLE, raising=False)
    return tiny(write(tmp_path / "chats.jsonl", conversations()))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tokens"


def all_records(config):
    return [list(records(config.data, i, TOKENIZER)) for i in range(config.data.clients)]


def test_devices_and_server_read_from_the_store_what_they_would_tokenise(
    config, folder, generator, monkeypatch
):
    model = generator(vocab_size=260)
    expected, in_memory = all_records(config), Evaluation(config, model)
    with kept_tokens.kept_tokens(config, folder):
        (path,) = folder.iterdir()
        monkeypatch.setattr("fedattn.contribution.load_partition", _never)
        monkeypatch.setattr("fedattn.flower.evaluation.load_partition", _never)
        assert all_records(config) == expected
        stored = Evaluation(config, model)
        assert path.stat().st_mode & 0o777 == 0o600
    assert sum(map(len, expected)) > 10
    assert in_memory.test
    assert in_memory.progress
    assert (stored.test, stored.progress) == (in_memory.test, in_memory.progress)


def _never(*_):
    raise AssertionError("the source was loaded")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_store_is_gone_when_the_simulation_ends(config, folder, monkeypatch, error):
    monkeypatch.setenv(VARIABLE, "outer")
    try:
        with kept_tokens.kept_tokens(config, folder):
            assert os.environ[VARIABLE] == str(folder)
            assert len(list(folder.iterdir())) == 1
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert not folder.exists()
    assert os.environ[VARIABLE] == "outer"


def test_other_data_another_config_or_another_vocabulary_has_no_store(config, folder, monkeypatch):
    write_tokens(config.data, 260, folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    assert open_tokens(config.data, 260) is not None
    assert open_tokens(config.data, 261) is None
    assert open_tokens(config.data.model_copy(update={"salt": "other"}), 260) is None
    write(_path(config), conversations(flavour=1))
    assert open_tokens(config.data, 260) is None
    changed = all_records(config)
    assert changed == [tokenize(part, TOKENIZER, 512) for part in load_partition(config.data).train]


def _path(config):
    from pathlib import Path

    return Path(config.data.path)


def test_without_a_name_no_store_is_read(config, folder):
    write_tokens(config.data, 260, folder)
    assert open_tokens(config.data, 260) is None


def test_a_whole_store_stays_and_a_torn_one_is_written_anew(config, folder):
    path = write_tokens(config.data, 260, folder)
    before, whole = path.stat(), path.read_bytes()
    assert write_tokens(config.data, 260, folder) == path
    assert path.stat() == before
    path.write_bytes(whole[:-9])
    assert write_tokens(config.data, 260, folder) == path
    assert path.read_bytes() == whole


def test_a_torn_store_is_not_read(config, folder, monkeypatch):
    expected = all_records(config)
    path = write_tokens(config.data, 260, folder)
    path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.setenv(VARIABLE, str(folder))
    assert open_tokens(config.data, 260) is None
    assert all_records(config) == expected


class Panic(BaseException):
    """As of compiled code: no Exception."""


def test_a_conversation_that_cannot_be_tokenised_is_absent_alone(config, folder, monkeypatch):
    expected = all_records(config)
    lost = load_partition(config.data).train[0][1]

    def fail(dialogues, *rest):
        if lost in dialogues:
            raise Panic
        return tokenize(dialogues, *rest)

    monkeypatch.setattr("fedattn.records.tokenize", fail)
    write_tokens(config.data, 260, folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    del expected[0][1]
    assert all_records(config) == expected


def test_a_source_that_cannot_be_loaded_has_no_store_and_says_why_as_ever(
    config, folder, capfd, generator
):
    with _path(config).open("a") as file:
        file.write('{"id": "canary", "turns": [{"speaker": "canary"}]}\n')
    with kept_tokens.kept_tokens(config, folder):
        assert not folder.exists()
        with pytest.raises(DataError, match=r"turns\[0\]\.text"):
            Evaluation(config, generator(vocab_size=260))
    out, err = capfd.readouterr()
    assert "canary" not in out + err


def test_a_small_source_has_no_store(config, folder, monkeypatch):
    monkeypatch.setattr(kept_tokens, "SMALL", 1 << 20)
    with kept_tokens.kept_tokens(config, folder):
        assert not folder.exists()
        assert VARIABLE not in os.environ


def test_a_simulation_reads_no_store_but_its_own(config, folder, tmp_path, monkeypatch):
    write_tokens(config.data, 260, tmp_path / "outer")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "outer"))
    monkeypatch.setattr(kept_tokens, "SMALL", 1 << 20)
    with kept_tokens.kept_tokens(config, folder):
        assert open_tokens(config.data, 260) is None
    assert open_tokens(config.data, 260) is not None  # what the caller had, it has again


def test_a_device_with_data_of_its_own_reads_no_store(config, folder, monkeypatch):
    own = OwnData(path=config.data.path).config
    write_tokens(own, 260, folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    assert open_tokens(own, 260) is None
    loaded = []
    monkeypatch.setattr(
        "fedattn.contribution.load_partition",
        lambda data: loaded.append(data) or load_partition(data),
    )
    assert list(records(own, 0, TOKENIZER)) == tokenize(
        load_partition(own).train[0], TOKENIZER, 512
    )
    assert loaded == [own]


def test_a_simulation_of_one_client_keeps_no_store(config, folder):
    alone = config.data.model_copy(update={"clients": 1})
    with kept_tokens.kept_tokens(config.model_copy(update={"data": alone}), folder):
        assert not folder.exists()
        assert VARIABLE not in os.environ


@pytest.mark.parametrize("kind", ["open folder", "symbolic link", "file"])
def test_a_store_planted_where_ours_would_lie_is_neither_read_nor_deleted(
    config, folder, tmp_path, kind
):
    expected = all_records(config)
    planted = write_tokens(config.data, 260, tmp_path / "planted")
    if kind == "file":
        folder.write_bytes(planted.read_bytes())
    elif kind == "symbolic link":
        folder.symlink_to(planted.parent)
    else:
        planted = planted.parent.rename(folder) / planted.name
        folder.chmod(0o755)
    before = planted.read_bytes()
    with kept_tokens.kept_tokens(config, folder):
        assert VARIABLE not in os.environ
        assert all_records(config) == expected
    assert folder.exists()
    assert planted.read_bytes() == before
    assert list(planted.parent.iterdir()) == [planted]
    if kind == "open folder":
        assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_store_that_another_user_made_is_replaced_by_our_own(config, folder):
    planted = write_tokens(config.data, 260, folder)
    nothing = FlatRecords()
    for _ in range(config.data.clients + 2):
        nothing.end_part()
    nothing.write(planted, planted.stem)
    os.chown(planted, 12_345, 12_345)
    expected = all_records(config)
    with kept_tokens.kept_tokens(config, folder):
        assert planted.stat().st_uid == os.geteuid()
        assert open_tokens(config.data, 260) is not None
        assert all_records(config) == expected
    assert not folder.exists()


def test_a_store_opened_to_others_while_it_is_read_is_read_no_more(config, folder, monkeypatch):
    path = write_tokens(config.data, 260, folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    assert open_tokens(config.data, 260) is not None
    path.chmod(0o666)
    assert open_tokens(config.data, 260) is None


def test_only_files_that_a_store_makes_are_deleted_with_it(config, folder):
    write_tokens(config.data, 260, folder)
    torn = folder / f"{'0' * 64}.tokens.{'1' * 16}.part"
    for each in (torn, folder / "mine.tokens", folder / "download.part"):
        each.write_text("somebody's")
    with kept_tokens.kept_tokens(config, folder):
        pass
    assert sorted(each.name for each in folder.iterdir()) == ["download.part", "mine.tokens"]


def test_there_is_no_client_beyond_the_last(config, folder, monkeypatch):
    write_tokens(config.data, 260, folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    with pytest.raises(IndexError, match="no such client"):
        open_tokens(config.data, 260).train(config.data.clients)
