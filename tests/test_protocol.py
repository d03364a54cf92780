"""The frozen test protocol: its pairs never move unseen, and it counts replies of all lengths."""

from __future__ import annotations

import numpy as np
import pytest

from fedattn.batches import Pair, tokenize
from fedattn.checkpoint import start_model
from fedattn.config import load_config
from fedattn.data import Dialogue, Turn, load_partition
from fedattn.flower.evaluation import Evaluation
from fedattn.generate import choose_pairs
from fedattn.protocol import (
    DATA,
    EXAMPLES,
    HELD_OUT_BYTES,
    PROTOCOL,
    SHAPE,
    other_key,
    pairs_sha256,
    protocol_of,
)
from fedattn.start import start_facts
from fedattn.tokens import Tokenizer
from simulations.ngrams import Bigram, Unigram, steps

TOKENIZER = Tokenizer(SHAPE.vocab_size)


@pytest.fixture(scope="module")
def held_out():
    data = load_partition(DATA)
    return {part: tokenize(getattr(data, part), TOKENIZER, HELD_OUT_BYTES)
            for part in ("validation", "test")}  # fmt: skip


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_frozen_pairs_are_what_they_were(part, held_out):
    pairs = choose_pairs(held_out[part], TOKENIZER, SHAPE.context_tokens, EXAMPLES, part)
    assert len(pairs) == EXAMPLES
    assert protocol_of(pairs, part) == PROTOCOL
    other = "test" if part == "validation" else "validation"
    assert protocol_of(pairs, other) is None
    assert protocol_of(pairs[:-1], part) is None


def test_replies_longer_than_those_that_train_are_scored(held_out):
    longest = max(
        len(TOKENIZER.decode(record.turns[index]).encode())
        for record in held_out["test"]
        for index in record.replies
    )
    assert longest > DATA.max_reply_bytes


def test_validation_and_test_have_no_conversation_in_common():
    data = load_partition(DATA)
    train = {item.id for own in data.train for item in own}
    validation, test = ({item.id for item in part} for part in (data.validation, data.test))
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.parametrize("name", ["quickstart", "cross_silo", "cross_device", "central"])
def test_the_configs_hold_out_whom_the_protocol_holds_out(name):
    config = load_config(f"configs/{name}.yaml", [])
    for key in ("source", "salt", "validation_share", "test_share", "min_turns"):
        assert getattr(config.data, key) == getattr(DATA, key)
    assert config.eval.examples == EXAMPLES
    shape = start_facts(config.model).architecture
    assert (shape.vocab_size, shape.context_tokens) == (SHAPE.vocab_size, SHAPE.context_tokens)


def test_every_id_and_every_border_is_in_the_hash():
    base = [Pair([1, 2], [3]), Pair([4], [5, 6])]
    changed = [
        [Pair([1, 2], [3]), Pair([4], [5, 7])],
        [Pair([1], [2, 3]), Pair([4], [5, 6])],
        [Pair([4], [5, 6]), Pair([1, 2], [3])],
        base[:1],
    ]
    assert len({pairs_sha256(each) for each in [base, *changed]}) == 5


def test_a_held_out_reply_of_any_length_counts():
    turns = tuple(Turn("ab"[i % 2], f"turn {i} says something") for i in range(5))
    long = Dialogue("x", (*turns, Turn("b", " ".join(f"word{i}" for i in range(200)))))
    (record,) = tokenize([long], TOKENIZER, HELD_OUT_BYTES)
    (cut,) = tokenize([long], TOKENIZER, DATA.max_reply_bytes)
    assert 5 in record.replies
    assert 5 not in cut.replies


def test_counted_models_are_distributions():
    rng = np.random.default_rng(0)
    size, eos, bos = 12, 10, 11
    replies = [[*rng.integers(0, 10, rng.integers(0, 6)).tolist(), eos] for _ in range(40)]
    before, after = steps(replies, bos)
    assert after.tolist() == [i for reply in replies for i in reply]
    assert before[0] == bos
    unigram = Unigram(after, size, 11, 0.5)
    bigram = Bigram(before, after, unigram, 0.7)
    assert unigram.p[:11].sum() == pytest.approx(1)
    for word in (0, 3, bos):
        p = [2.0 ** -bigram.bits(np.array([word]), np.array([i])) for i in range(11)]
        assert sum(p) == pytest.approx(1)


def test_the_bigram_agrees_with_counting_by_hand():
    a, b, eos, bos = 0, 1, 2, 3
    before, after = steps([[a, b, eos], [a, a, eos]], bos)
    unigram = Unigram(after, 4, 3, 0.0)
    bigram = Bigram(before, after, unigram, 0.5)
    # after `a`: b, a, eos once each; so p(b|a) = (1 - 0.5)/3 + 0.5 * 3/3 * p(b), p(b) = 1/6
    bits = bigram.bits(np.array([a]), np.array([b]))
    assert 2.0**-bits == pytest.approx(0.5 / 3 + 0.5 / 6)


def test_a_report_names_the_protocol_only_if_its_replies_are_those():
    model = start_model(load_config("configs/quickstart.yaml", []).model)
    config = load_config("configs/quickstart.yaml", [])
    assert Evaluation(config, model).protocol == PROTOCOL
    for change in ("eval.examples=1499", "data.salt=other", "data.test_share=0.2"):
        other = Evaluation(load_config("configs/quickstart.yaml", [change]), model)
        assert other.protocol is None
        assert protocol_of(other.test) is None


def test_where_an_audit_could_not_tell_the_name_is_withheld():
    # One byte more keeps the same conversations here; that it does, no config says.
    model = start_model(load_config("configs/quickstart.yaml", []).model)
    config = load_config("configs/quickstart.yaml", ["data.max_reply_bytes=513"])
    measured = Evaluation(config, model)
    assert protocol_of(measured.test) == PROTOCOL
    assert measured.protocol is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("data.max_reply_bytes=64", "data.max_reply_bytes"),
        ("data.min_turns=5", "data.min_turns"),
        ("eval.examples=1499", "eval.examples"),
        ("data.clients=7", None),
        ("data.keep_rate=0.5", None),
        ("eval.progress_examples=0", None),
    ],
)
def test_what_may_hold_out_others_is_named_by_key(change, key):
    assert other_key(load_config("configs/quickstart.yaml", [change])) == key


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 8192), ("context_tokens", 32)])
def test_a_random_start_of_another_shape_has_other_pairs(name, value):
    config = load_config("configs/quickstart.yaml", [])
    for shape, key in (
        (SHAPE, None),
        (SHAPE.model_copy(update={name: value}), f"model.architecture.{name}"),
        (SHAPE.model_copy(update={"d_model": 64}), None),
    ):
        start = config.model.model_copy(update={"start": "random", "architecture": shape})
        assert other_key(config.model_copy(update={"model": start})) == key
