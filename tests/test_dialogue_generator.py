"""`fedattn.load`: what can be loaded, what is refused, and what the generator says."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedattn
from fedattn.batches import Pair
from fedattn.checkpoint import save_model
from fedattn.dialogue_generator import Numbered
from fedattn.errors import ConfigError, DataError, ModelError, RunError
from fedattn.found_model import UNKNOWN
from fedattn.generate import bits_per_byte, context_of, reply
from fedattn.growing import LONGEST, GrowingReply
from fedattn.report import read_report
from fedattn.sampling import Sampling
from fedattn.tokens import Tokenizer
from tests.run_builder import Run

TURNS = ["red cat", "blue dog runs", "then again"]
DRAWN = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 5}


@pytest.fixture(scope="module")
def of_run(finished_run):
    return fedattn.load(finished_run)


def random_generator(tmp_path, generator, **shape):
    """A generator with busy random weights, through a file."""
    path = tmp_path / "random.safetensors"
    save_model(path, generator(**shape))
    return fedattn.load(path)


def test_a_run_is_loaded_with_its_loud_notes(of_run, finished_run):
    assert of_run.notes == tuple(read_report(finished_run).notes)
    assert of_run.found.report == read_report(finished_run)
    assert of_run.reply(TURNS, max_tokens=5).ids


def test_a_model_file_that_is_not_the_reports_is_refused(finished_run, tmp_path):
    changed = tmp_path / "run"
    shutil.copytree(finished_run, changed)
    fedattn.load(changed)
    path = changed / "model.safetensors"
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 1
    path.write_bytes(stored)
    with pytest.raises(RunError, match=r"model.safetensors: sha256 .* is not the .* restore"):
        fedattn.load(changed)
    path.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        fedattn.load(changed)


def test_an_unfinished_run_and_a_wrong_path_are_refused(finished_run, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"run: not a run; it has neither"):
        fedattn.load(tmp_path / "run")
    (tmp_path / "run" / "ledger.jsonl").touch()
    with pytest.raises(RunError, match=r"the run did not finish\. .*--resume"):
        fedattn.load(tmp_path / "run")
    with pytest.raises(RunError, match="no such run"):
        fedattn.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="not a safetensors file"):
        fedattn.load(finished_run / "report.json")


def test_a_report_whose_config_is_none_is_refused(tmp_path):
    def renamed(report):
        return report.model_copy(update={"config": {**report.config, "name": "a](http://b)\n# c"}})

    run = Run(tmp_path / "run", report=renamed).write()
    with pytest.raises(RunError, match=r"(?s)report.json: config: .*name is .*audit` it"):
        fedattn.load(run)


def test_a_bare_checkpoint_says_that_nothing_is_known_of_its_privacy(finished_run, of_run):
    bare = fedattn.load(str(finished_run / "model.safetensors"))
    assert bare.notes == (UNKNOWN,)
    assert bare.reply(TURNS).ids == of_run.reply(TURNS).ids


def test_the_shipped_model_can_be_loaded_by_name():
    public = fedattn.load("public")
    assert public.notes == ()
    assert public.reply(["hi, how are you?"], max_tokens=4).text


def test_a_reply_is_greedy_unless_told_and_its_attention_belongs_to_it(of_run):
    made = of_run.reply(TURNS, max_tokens=9)
    context = context_of(TURNS, of_run.tokenizer, of_run.model.shape.context_tokens)
    slow = reply(of_run.model, of_run.tokenizer, context, max_tokens=9)
    assert (made.ids, made.text) == (slow.ids, slow.text)
    assert made.attention.cross[0].shape[2:] == (len(made.ids) + 1, len(context))
    assert of_run.attention(TURNS, made).reply
    seen = of_run.attention(TURNS, made)
    assert len(seen.weights) == len(made.ids)
    assert len(seen.context) == len(context)


def test_attention_of_a_text_is_that_of_its_tokens(of_run):
    seen = of_run.attention(TURNS, "red bird")
    assert "".join(seen.reply) == "red bird"


def test_a_seed_repeats_a_reply_and_another_seed_or_number_changes_it(tmp_path, generator):
    model = random_generator(tmp_path, generator)
    first = model.reply(TURNS, **DRAWN)
    torch.manual_seed(99)
    assert model.reply(TURNS, **DRAWN).ids == first.ids
    assert model.reply(TURNS, **{**DRAWN, "seed": 6}).ids != first.ids
    growing = [model.stream(TURNS, **DRAWN, number=number) for number in (0, 1)]
    texts = ["".join(each) for each in growing]
    assert texts[0] == first.text
    assert texts[1] != first.text
    assert model.reply(TURNS, **{**DRAWN, "seed": None}).ids != first.ids


@pytest.mark.parametrize("choice", [{}, DRAWN])
@pytest.mark.parametrize("longest", [0, 1, 30])
def test_the_pieces_of_a_stream_are_the_reply(tmp_path, generator, choice, longest):
    model = random_generator(tmp_path, generator)
    for said in ("hi", "what?", "好", "red cat"):
        growing = model.stream([said], **choice, max_tokens=longest)
        pieces = list(growing)
        made = model.reply([said], **choice, max_tokens=longest)
        assert "".join(pieces) == made.text == growing.text
        assert growing.ids == made.ids
        assert all(pieces)


TOKENS = Tokenizer(257)


@settings(max_examples=300)
@given(
    st.one_of(
        st.text(max_size=12).map(lambda text: list(text.encode(errors="replace"))),
        st.lists(st.integers(0, 255), max_size=12),
        st.lists(st.sampled_from([*b" \n\xe2\x82\xac\xf0\x9f\x98\x80\xef\xbf\xbd\xc2\xa0a"])),
    )
)
def test_whatever_bytes_a_model_makes_the_pieces_are_whole_characters_of_its_text(values):
    # in GPT-2's vocabulary the first ids are the bytes, in an order of their own
    of_byte = {byte: TOKENS._bpe.token_to_id(sign) for byte, sign in byte_signs().items()}
    ids = [of_byte[value] for value in values]
    growing = GrowingReply(iter(ids), TOKENS)
    before, pieces = "", []
    for piece in growing:
        pieces.append(piece)
        before += piece
        assert TOKENS.decode(ids).strip().startswith(before)
    assert "".join(pieces) == bytes(values).decode(errors="replace").strip()


def byte_signs():
    """GPT-2's sign for each byte: itself where it can be seen, else the next unused code."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {b: chr(b) for b in seen} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def test_a_character_of_several_tokens_comes_as_one_piece():
    ids = TOKENS.encode("a 😀!")
    pieces = list(GrowingReply(iter(ids), TOKENS))
    assert len(ids) > len(pieces)
    assert pieces == ["a", " 😀", "!"]


@pytest.mark.parametrize("choice", [Sampling(repetition_penalty=2.0), Sampling(0.9, 0.9, 1.2)])
def test_replies_made_together_are_those_made_alone(tmp_path, generator, choice):
    model = random_generator(tmp_path, generator)
    given_ = [Numbered(7 * i, tuple(TURNS[: 1 + i % 3]) + ("x" * i,) * (i > 2)) for i in range(6)]
    together = model.replies(given_, sampling=choice, max_tokens=20, seed=3)
    for each, made in zip(given_, together, strict=True):
        (alone,) = model.replies([each], sampling=choice, max_tokens=20, seed=3)
        assert alone == made
        growing = model.stream(
            each.turns,
            temperature=choice.temperature,
            top_p=choice.top_p,
            repetition_penalty=choice.repetition_penalty,
            max_tokens=20,
            seed=3,
            number=each.number,
        )
        assert "".join(growing) == made.text
        assert made.is_finished == (len(made.ids) < 20)
    assert len({made.ids for made in together}) > 1
    assert model.replies([], sampling=choice) == []


def test_bits_per_byte_of_texts_is_that_of_their_tokens(of_run):
    pairs = [(TURNS, "red dog"), (["hi"], "blue")]
    tokens = [
        Pair(
            context_of(turns, of_run.tokenizer, of_run.model.shape.context_tokens),
            [*of_run.tokenizer.encode(text), of_run.tokenizer.eos],
        )
        for turns, text in pairs
    ]
    assert of_run.bits_per_byte(pairs) == bits_per_byte(of_run.model, tokens, of_run.tokenizer)
    assert math.isnan(of_run.bits_per_byte([]).bpb)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("hi", "must be a list"),
        ([], "there is none"),
        (["hi", " "], r"turns\[1\]: is empty"),
        (["hi", 3], r"turns\[1\]: must be a text"),
        (["hi", "a \ud800"], r"turns\[1\]: holds half a character; remove it"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_place(of_run, turns, message):
    for ask in (of_run.reply, of_run.stream):
        with pytest.raises(DataError, match=message):
            ask(turns)
    with pytest.raises(DataError, match=message):
        of_run.attention(turns, "yes")


def test_a_reply_that_is_no_text_is_refused_by_its_place(of_run):
    with pytest.raises(DataError, match="reply: holds half a character"):
        of_run.attention(TURNS, "\udfff")
    with pytest.raises(DataError, match="reply: holds half a character"):
        of_run.bits_per_byte([(TURNS, "\udfff")])


def test_settings_out_of_bounds_are_refused_before_anything_is_generated(of_run):
    with pytest.raises(ConfigError, match="max_tokens"):
        of_run.stream(TURNS, max_tokens=-1)
    for ask in (of_run.stream, of_run.reply):
        with pytest.raises(ConfigError, match=f"at most {LONGEST}"):
            ask(TURNS, max_tokens=LONGEST + 1)
    with pytest.raises(ConfigError, match=f"at most {LONGEST}"):
        of_run.replies([Numbered(0, ("hi",))], sampling=Sampling(), max_tokens=10**12)
    with pytest.raises(ConfigError, match="top_p"):
        of_run.stream(TURNS, top_p=0)


def test_a_generator_prints_where_it_is_from_and_no_weights(of_run, finished_run):
    assert repr(of_run) == f"DialogueGenerator({json.dumps(str(finished_run))[1:-1]!r})"


def test_the_package_has_no_other_doors():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fedattn.nonsense
