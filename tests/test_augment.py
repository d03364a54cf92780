"""Augmentation: from one record's own words, the reply untouched, nothing at all when it is off."""

import math

import pytest
import torch

import fedattn.augment
from fedattn.augment import augmented
from fedattn.batches import pair
from fedattn.config import AugmentConfig
from fedattn.paraphrase import _OTHERS, paraphrased
from fedattn.randomness import Randomness
from fedattn.records import Record
from fedattn.tokens import Tokenizer
from fedattn.train import train_locally

TOKENIZER = Tokenizer(257)
EVERYTHING = AugmentConfig(turn_drop=0.3, truncate=0.3, paraphrase=0.5)


def record_of(*texts):
    turns = tuple(tuple(TOKENIZER.encode(text)) for text in texts)
    return Record(tuple(i % 2 for i in range(len(texts))), turns, tuple(range(1, len(texts))))


RECORD = record_of("hello there", "i am fine. you?", "ok me too", "are you going to come?", "yes!")


class Counted(Randomness):
    """Counts what is taken."""

    taken = 0

    def bytes(self, n):
        self.taken += n
        return super().bytes(n)


def counted(seed=1):
    made = Counted.seeded(seed)
    assert isinstance(made, Counted)
    return made


def turns_of(context):
    """The context's turns as texts, by their markers."""
    texts, part = [], []
    for token in [*context, TOKENIZER.me]:
        if token in (TOKENIZER.me, TOKENIZER.you):
            texts.append(TOKENIZER.decode(part))
            part = []
        else:
            part.append(token)
    return texts[1:]


def drawn(chances, reply=4, context_tokens=200, record=RECORD, count=3000, seed=3):
    randomness = Randomness.seeded(seed)
    return [
        augmented(record, reply, TOKENIZER, context_tokens, chances, randomness)
        for _ in range(count)
    ]


def test_off_takes_no_randomness_and_gives_the_same_example():
    for reply in RECORD.replies:
        for context_tokens in (4, 20, 200):
            randomness = counted()
            made = augmented(RECORD, reply, TOKENIZER, context_tokens, AugmentConfig(), randomness)
            assert made == pair(RECORD, reply, TOKENIZER, context_tokens)
            assert randomness.taken == 0


def test_on_takes_some():
    randomness = counted()
    augmented(RECORD, 4, TOKENIZER, 200, EVERYTHING, randomness)
    assert randomness.taken > 0


@pytest.mark.parametrize("context_tokens", [4, 20, 200])
def test_the_reply_and_the_limits_stay_and_the_last_turn_is_there(context_tokens):
    chances = AugmentConfig(turn_drop=0.5, truncate=0.5)
    for made in drawn(chances, context_tokens=context_tokens, count=200):
        assert made.reply == pair(RECORD, 4, TOKENIZER, context_tokens).reply
        assert 0 < len(made.context) <= context_tokens
        last = list(RECORD.turns[3])
        assert made.context[-len(last) :] == last[-context_tokens:]


def test_every_turn_but_the_last_is_left_out_as_often_as_configured():
    said = [turns_of(made.context) for made in drawn(AugmentConfig(turn_drop=0.3))]
    for text, rate in (("hello there", 0.7), ("ok me too", 0.7), ("are you going to come?", 1.0)):
        share = sum(text in turns for turns in said) / len(said)
        assert abs(share - rate) <= 5 * math.sqrt(0.21 / len(said)) * (rate < 1)
    both = sum(len(turns) == 4 for turns in said) / len(said)
    assert abs(both - 0.7**3) < 0.05  # (each by itself)


def test_older_turns_take_the_place_of_those_left_out():
    width = 2 + len(RECORD.turns[3]) + len(RECORD.turns[2])
    whole = pair(RECORD, 4, TOKENIZER, width).context
    assert "fine" not in TOKENIZER.decode(whole)
    said = drawn(AugmentConfig(turn_drop=0.5), context_tokens=width, count=200)
    assert any("you?" in TOKENIZER.decode(made.context) for made in said)


def test_truncation_keeps_a_uniform_number_of_the_last_turns():
    lengths = [len(turns_of(made.context)) for made in drawn(AugmentConfig(truncate=0.6))]
    for count, rate in ((1, 0.15), (2, 0.15), (3, 0.15), (4, 0.55)):
        assert abs(lengths.count(count) / len(lengths) - rate) < 0.05


def test_who_said_a_turn_stays():
    for made in drawn(EVERYTHING, count=300):
        markers = [token for token in made.context if token in (TOKENIZER.me, TOKENIZER.you)]
        texts = turns_of(made.context)
        assert markers[-1] == TOKENIZER.you
        for marker, text in zip(markers, texts, strict=True):
            is_own = text.casefold().startswith(("hello", "ok"))
            assert (marker == TOKENIZER.me) == is_own


def test_a_paraphrase_changes_the_context_alone_and_as_often_as_configured():
    said = [turns_of(made.context)[0] for made in drawn(AugmentConfig(paraphrase=0.25))]
    assert abs(sum(text[0] == "H" for text in said) / len(said) - 0.25) < 0.05
    assert abs(sum(text[-1] == "." for text in said) / len(said) - 0.25) < 0.05
    assert {text.casefold().rstrip(".") for text in said} == {"hello there"}


def test_a_turn_that_fills_the_context_stays_as_it_is():
    record = record_of("i am " * 30, "ok")
    made = drawn(AugmentConfig(paraphrase=0.9), 1, 12, record, 20)
    assert {tuple(each.context) for each in made} == {tuple(pair(record, 1, TOKENIZER, 12).context)}


def test_the_example_hangs_on_one_record_and_the_stream_alone():
    other = record_of("something else", "quite other words", "and more")
    for seed in range(5):
        expected = augmented(RECORD, 4, TOKENIZER, 200, EVERYTHING, Randomness.seeded(seed))
        augmented(other, 2, TOKENIZER, 200, EVERYTHING, Randomness.seeded(99))
        again = augmented(RECORD, 4, TOKENIZER, 200, EVERYTHING, Randomness.seeded(seed))
        assert again == expected


def test_a_panic_over_one_record_leaves_its_turns_as_they_are(monkeypatch):
    class Panic(BaseException):
        """As of compiled code: no Exception."""

    def panic(*_):
        raise Panic

    monkeypatch.setattr(fedattn.augment, "paraphrased", panic)
    chances = AugmentConfig(paraphrase=0.9)
    assert drawn(chances, count=1) == [pair(RECORD, 4, TOKENIZER, 200)]
    monkeypatch.setattr(
        fedattn.augment, "paraphrased", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        drawn(chances, count=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I am here", {"I'm here", "Im here"}),
        ("you", {"u"}),
        ("don’t", {"do not", "dont"}),
        ("Thanks a lot", {"Thx a lot"}),
        ("nothing to change in here", {"nothing to change in here"}),
        ("<u>youth rugby</u>", {"<u>youth rugby</u>"}),
        ("", {""}),
    ],
)
def test_rules_hold_for_whole_words_and_keep_the_capital(text, said):
    randomness = Randomness.seeded(5)

    def happens(chance):
        """Words change always, the first letter and the end never."""
        return next(left) if chance == 1 else randomness.uniform(1)[0] < chance

    found = set()
    for _ in range(20):
        places = len(fedattn.paraphrase._PLACE.findall(text))
        left = iter([True] * places + [False] * 2)
        found.add(paraphrased(text, 1, happens))
    assert found == said


def test_rules_go_both_ways():
    for said, others in _OTHERS.items():
        assert others
        assert said not in others
        for other in others:
            assert said in _OTHERS[other]


@pytest.mark.parametrize("unit", ["conversation", "none"])
def test_training_without_augmentation_is_to_the_bit_what_it_was(
    generator, make_records, make_config, unit, monkeypatch
):
    """Against the draw as it was before there was any."""
    plain = {"privacy__unit": "none", "privacy__noise": "none", "privacy__epsilon_budget": None}
    changes = {} if unit == "conversation" else plain
    config = make_config(train__draws=2, privacy__i_know=True, **changes)
    given = (make_records(12, replies=3), config)
    now = train_locally(generator(), TOKENIZER, *given, Randomness.seeded(1)).delta

    def before(self, record):
        chosen = [self.randomness.below(len(record.replies)) for _ in range(2)]
        context_tokens = self.model.shape.context_tokens
        return tuple(pair(record, record.replies[i], TOKENIZER, context_tokens) for i in chosen)

    monkeypatch.setattr("fedattn.train._Steps.draw", before)
    then = train_locally(generator(), TOKENIZER, *given, Randomness.seeded(1)).delta
    assert now.abs().max() > 0
    assert torch.equal(now, then)


def test_each_draw_is_augmented_by_itself_and_training_sees_it(
    generator, make_records, make_config, monkeypatch
):
    seen = []
    true_losses = fedattn.train.record_losses

    def spy(model, batch):
        seen.append(batch)
        return true_losses(model, batch)

    monkeypatch.setattr("fedattn.train.record_losses", spy)
    config = make_config(
        train__draws=4, train__augment={"truncate": 0.9}, privacy__sampling_rate=1.0,
        train__local_steps=1,
    )  # fmt: skip
    short = Record((0, 1, 0, 1), ((1, 2), (3,), (4,), (5,)), (3,))
    delta = train_locally(generator(), TOKENIZER, [short] * 8, config, Randomness.seeded(1)).delta
    assert delta.isfinite().all()
    contexts = torch.cat([batch.context for batch in seen])
    lengths = (contexts != TOKENIZER.pad).sum(1).reshape(-1, 4)
    assert set(lengths.flatten().tolist()) == {2, 4, 7}
    assert any(len(set(row.tolist())) > 1 for row in lengths)


@pytest.mark.parametrize("text", ["\u0131t's fine", "\u0130 am here", "i am \u0131n, \u0130'm"])
def test_turkish_letters_that_look_like_an_i_raise_nothing_and_stay(text):
    """A pattern without case takes them for an i; the rules are about English."""
    made = paraphrased(text, 1.0, lambda chance: chance == 1.0)
    letters = "\u0131\u0130"
    assert [sign for sign in made[1:] if sign in letters] == [
        sign for sign in text[1:] if sign in letters
    ]
