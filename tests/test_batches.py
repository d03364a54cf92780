"""From dialogues to tensors: nothing added, nothing lost, padding where it belongs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedattn.batches import IGNORED, Pair, Record, collate, pair, tokenize
from fedattn.data import Dialogue, Turn, examples
from fedattn.tokens import Tokenizer

TOKENIZER = Tokenizer(257)
IDS = st.lists(st.integers(0, 256), min_size=1, max_size=9)


def dialogue(*turns: tuple[str, str], name: str = "d") -> Dialogue:
    return Dialogue(name, tuple(Turn(who, text) for who, text in turns))


def test_a_record_holds_the_turns_the_speakers_and_the_usable_replies():
    chat = dialogue(("zoe", "hi"), ("ann", "hello there"), ("zoe", "x" * 600), ("ann", "ok"))
    (record,) = tokenize([chat], TOKENIZER, max_reply_bytes=512)
    assert [TOKENIZER.decode(turn) for turn in record.turns] == [t.text for t in chat.turns]
    assert record.speakers == (1, 0, 1, 0)
    assert record.replies == (1, 3)


@given(st.lists(st.text("ab 你", min_size=1, max_size=5), min_size=1, max_size=6))
def test_replies_are_the_examples_of_the_data_layer(texts):
    chat = dialogue(*((("ann", "zoe")[i % 2], text) for i, text in enumerate(texts)))
    (record,) = tokenize([chat], TOKENIZER, max_reply_bytes=6)
    expected = examples(chat, 6)
    assert [chat.turns[index] for index in record.replies] == [e.reply for e in expected]


def test_one_record_does_not_depend_on_the_others():
    chats = [dialogue(("a", f"text {i}"), ("b", "yes" * i), name=str(i)) for i in range(5)]
    together = tokenize(iter(chats), TOKENIZER, 512)
    assert together == [tokenize([chat], TOKENIZER, 512)[0] for chat in chats]
    assert tokenize([], TOKENIZER, 512) == []


def slow_context(record: Record, reply: int, size: int) -> list[int]:
    """The whole history, marked by speaker, cut on the left."""
    ids: list[int] = []
    for speaker, turn in zip(record.speakers[:reply], record.turns[:reply], strict=True):
        ids.append(TOKENIZER.me if speaker == record.speakers[reply] else TOKENIZER.you)
        ids += turn
    return ids[-size:]


@given(
    st.lists(st.tuples(st.integers(0, 2), IDS), min_size=2, max_size=6),
    st.integers(1, 40),
    st.data(),
)
def test_a_pair_is_the_last_tokens_of_the_history_and_the_ended_reply(turns, size, data):
    record = Record(
        tuple(who for who, _ in turns), tuple(tuple(ids) for _, ids in turns), replies=()
    )
    reply = data.draw(st.integers(1, len(turns) - 1))
    made = pair(record, reply, TOKENIZER, size)
    assert made.context == slow_context(record, reply, size)
    assert made.reply == [*record.turns[reply], TOKENIZER.eos]


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5), st.none() | st.integers(1, 12))
def test_collate_pads_contexts_left_and_replies_right(rows, cut):
    pairs = [Pair(context, [*reply, TOKENIZER.eos]) for context, reply in rows]
    batch = collate(pairs, TOKENIZER, cut)
    assert len(batch) == len(pairs)
    assert {t.dtype for t in (batch.context, batch.tokens, batch.targets)} == {torch.int64}
    width, length = batch.context.shape[1], batch.targets.shape[1]
    assert width == max(len(p.context) for p in pairs)
    assert length == max(len(p.reply[:cut]) for p in pairs)
    for row, (context, reply) in enumerate(pairs):
        reply = reply[:cut]
        spare = length - len(reply)
        assert batch.context[row].tolist() == [TOKENIZER.pad] * (width - len(context)) + context
        expected = [TOKENIZER.bos, *reply[:-1]] + [TOKENIZER.pad] * spare
        assert batch.tokens[row].tolist() == expected
        assert batch.targets[row].tolist() == reply + [IGNORED] * spare


def looped(pairs, cut):
    """Row by row: what `collate` does at once."""
    replies = [reply[:cut] for _, reply in pairs]
    width, length = max(len(context) for context, _ in pairs), max(map(len, replies))
    context = torch.full((len(pairs), width), TOKENIZER.pad)
    tokens = torch.full((len(pairs), length), TOKENIZER.pad)
    targets = torch.full((len(pairs), length), IGNORED)
    for row, (each, reply) in enumerate(zip(pairs, replies, strict=True)):
        context[row, width - len(each.context) :] = torch.tensor(each.context)
        tokens[row, : len(reply)] = torch.tensor([TOKENIZER.bos, *reply[:-1]])
        targets[row, : len(reply)] = torch.tensor(reply)
    return context, tokens, targets


ANY = st.lists(st.integers(0, 261), max_size=9)


@given(st.lists(st.builds(Pair, ANY, ANY), min_size=1, max_size=6), st.none() | st.integers(1, 12))
def test_collate_is_the_loop_over_rows_to_the_last_bit(pairs, cut):
    batch = collate(pairs, TOKENIZER, cut)
    made = (batch.context, batch.tokens, batch.targets)
    for one, other in zip(made, looped(pairs, cut), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
        assert one.is_contiguous()


def test_records_and_batches_do_not_print_their_content():
    (record,) = tokenize([dialogue(("a", "canary"), ("b", "canary"))], TOKENIZER, 512)
    batch = collate([pair(record, 1, TOKENIZER, 9)], TOKENIZER)
    assert repr(record) == "Record(<omitted>)"
    assert repr([batch]) == "[Batch(<omitted>)]"


def test_a_batch_moves_whole():
    batch = collate([Pair([1], [2, 3])], TOKENIZER).to(torch.device("meta"))
    assert {t.device.type for t in (batch.context, batch.tokens, batch.targets)} == {"meta"}
