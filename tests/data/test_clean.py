"""Cleaning: each conversation by its own words, ids and owners unmoved, twice is once."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedattn.records
from fedattn.config import CleanConfig, DataConfig
from fedattn.data import Dialogue, Turn, describe, load_partition
from fedattn.data.clean import clean, prepared
from fedattn.data.clean_language import is_hardly_english
from fedattn.data.clean_text import junk, tidy
from fedattn.kept_tokens import VARIABLE, open_tokens, write_tokens
from fedattn.policy import OwnData
from fedattn.records import tokenize, training_records
from fedattn.tokens import Tokenizer
from tests.federation import conversations, tiny, write

EVERYTHING = CleanConfig(junk=True, english=True, min_reply_words=2, mask_pii=True)
TOKENIZER = Tokenizer(257)
GERMAN = (
    "Wie geht es dir heute, mein Freund? Mir geht es wirklich sehr gut. Ich war gestern mit meiner "
    "Schwester auf dem Markt, und wir haben frisches Brot gekauft."
)


def talk(id, *texts):
    return Dialogue(id, tuple(Turn("ab"[i % 2], text) for i, text in enumerate(texts)))


def texts_of(dialogue):
    return [turn.text for turn in dialogue.turns]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("?!... :-)", "symbols"),
        ("😂😂", "symbols"),
        ("<url> <email>", "symbols"),
        ("asdfghjkl", "mashing"),
        ("sdkfjhskdfjh wrtplkjhgf", "mashing"),
        ("<div class='x'><br/></div>", "markup"),
        ("&nbsp;&nbsp;a", "markup"),
        ("7", None),
        ("hmmmmmmmmm", None),
        ("shhhhhhhhh", None),
        ("pffft brrr", None),
        ("I <3 that > this", None),
        ("مرحبا", None),
        ("你好", None),
        ("use <b>this</b> to say that something is really important", None),
        ("rhythms and strengths", None),
        ("😂 ok", None),
    ],
)
def test_junk_is_what_holds_no_words(text, why):
    assert junk(text) == why


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("cafe\u0301", "café"),
        ("a\u200bb\u00adc\ufeff", "abc"),
        ("\u202eabc\u202c \u200fשלום\u200f", "abc שלום"),
        ("one\r\n\ttwo\x00three", "one two three"),
        ("two  spaces", "two  spaces"),
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("4\u200d1", "41"),
        ("\u200b", ""),
    ],
)
def test_tidying_keeps_what_is_seen(text, tidied):
    assert tidy(text) == tidied


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u200d\u200b \te\u0301K"))
)
def test_tidying_twice_is_tidying_once(text):
    assert tidy(tidy(text)) == tidy(text)


def test_a_junk_turn_goes_and_its_neighbours_are_joined_and_looked_at_again():
    made = clean(
        talk("c", "my number is 415-555", "!!!", "-2671 ok", "thanks a lot"),
        CleanConfig(junk=True, mask_pii=True),
    )
    assert texts_of(made.dialogue) == ["my number is <phone> ok", "thanks a lot"]
    assert clean(made.dialogue, EVERYTHING).dialogue == made.dialogue
    assert (made.counts["symbols"], made.counts["joined"]) == (1, 1)


def test_nothing_is_left_of_a_conversation_of_junk():
    made = clean(talk("c", "!!!", "???", "\u200b"), EVERYTHING)
    assert made.dialogue.turns == ()
    assert +made.counts == Counter(symbols=2, empty=1, tidied=1)
    assert prepared(talk("c", "!!!", "???"), DataConfig(clean=EVERYTHING)) is None


@pytest.mark.parametrize(
    ("text", "is_foreign"),
    [
        (GERMAN, True),
        ("bonjour mon ami, comment ça va? moi je vais très bien aujourd'hui, on mange ensemble ce "
         "soir chez ta mère ou tu préfères rester à la maison", True),
        ("你好，今天过得怎么样？我昨天和朋友去了市场，买了一些新鲜的面包和水果。", True),
        ("gg wp ez clap pog poggers kek lmao rofl xd xd xd xd lul lul", False),
        ("ok " * 40, False),
        ("Pizza spaghetti lasagna gelato pasta pesto mozzarella tiramisu", False),
        ("привет, как у тебя дела сегодня? у меня всё хорошо, спасибо большое", True),
        ("ok u 2 lol brb gotta go eat dinner w my fam, ttyl dude! gn xoxo", False),
        ("hey wassup bro? nm wbu, wanna chill l8r? sure thing, see you at 8", False),
        ("ja", False),  # too short to be judged
    ],
)  # fmt: skip
def test_conversations_that_are_hardly_english_are_told(text, is_foreign):
    assert is_hardly_english(text) is is_foreign
    made = clean(talk("c", text, text), CleanConfig(english=True))
    assert (made.dialogue is None) is is_foreign


@pytest.mark.parametrize("rules", [EVERYTHING, CleanConfig(mask_pii=True), CleanConfig()])
def test_ids_people_and_speakers_stay(rules):
    item = Dialogue("c@d.com", (Turn("user", "hi a@b.com"), Turn("assistant", "hello you")), ("p",))
    made = clean(item, rules).dialogue
    assert (made.id, made.people) == ("c@d.com", ("p",))
    assert [turn.speaker for turn in made.turns] == ["user", "assistant"]


def test_with_no_rule_a_conversation_is_the_very_same():
    item = talk("c", " a\u200b@b.com ", "!!!")
    assert prepared(item, DataConfig()) is item


def test_short_replies_stay_context():
    config = DataConfig(min_turns=2, clean=CleanConfig(min_reply_words=2))
    (record,) = training_records([talk("c", "a", "b", "c d", "e", "f g h")], TOKENIZER, config)
    assert record.replies == (2, 4)
    assert len(record.turns) == 5
    assert training_records([talk("c", "a b", "c", "d")], TOKENIZER, config) == []


words = st.sampled_from(
    ["hello there", "!!!", "asdfgh", "a@b.com", "www.x.com", "415-", "555-2671", "<br>", "\u200b",
     "ok", "4111 1111", "1111 1111", "yes it is so", GERMAN, "😂"]
)  # fmt: skip
dialogues = st.builds(
    lambda id, texts: talk(f"c{id}", *texts),
    st.integers(0, 10_000),
    st.lists(st.lists(words, min_size=1, max_size=3).map(" ".join), min_size=2, max_size=7),
)
corpora = st.lists(dialogues, max_size=6, unique_by=lambda item: item.id)
rules_sets = st.builds(
    CleanConfig,
    junk=st.booleans(),
    english=st.booleans(),
    min_reply_words=st.integers(0, 3),
    mask_pii=st.booleans(),
)
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(dialogues, rules_sets)
def test_cleaning_twice_is_cleaning_once(item, rules):
    once = clean(item, rules).dialogue
    if once is not None:
        again = clean(once, rules)
        assert again.dialogue == once
        assert not +again.counts


@unhurried
@given(corpora, rules_sets)
def test_a_list_is_cleaned_as_each_alone_and_one_more_changes_no_other(corpus, rules):
    config = DataConfig(min_turns=2, clean=rules)
    whole = training_records(corpus, TOKENIZER, config)
    alone = [training_records([item], TOKENIZER, config) for item in corpus]
    assert all(len(records) <= 1 for records in alone)
    assert whole == [record for records in alone for record in records]
    for index in range(len(corpus)):
        rest = corpus[:index] + corpus[index + 1 :]
        without = [record for records in alone[:index] + alone[index + 1 :] for record in records]
        assert training_records(rest, TOKENIZER, config) == without


def test_national_phones_are_those_of_the_region_of_the_config():
    item = talk("c", "ruf an: 030 901820", "hello there")
    made = [
        prepared(item, DataConfig(min_turns=2, clean=CleanConfig(mask_pii=True, region=region)))
        for region in ("US", "DE")
    ]
    assert [texts_of(each)[0] for each in made] == ["ruf an: 030 901820", "ruf an: <phone>"]
    assert OwnData(path="x", clean=CleanConfig(region="DE")).config.clean.region == "DE"


def test_a_conversation_that_goes_on_changing_is_absent():
    """Of a nest of card halves a pass masks and drops the innermost, and joins what is around."""

    def nested(depth):
        outer = ["b", *("ab"[i % 2] for i in range(depth))]
        speakers = [*outer, "ab"[depth % 2], *outer[::-1]]
        inside = [*["4111 1111"] * depth, "!!!", *["1111 1111"] * depth]
        texts = ["hello there", *inside, "how are you"]
        return Dialogue("c", tuple(map(Turn, speakers, texts)))

    rules = CleanConfig(junk=True, mask_pii=True)
    (shallow, deep) = (clean(nested(depth), rules) for depth in (3, 20))
    assert texts_of(shallow.dialogue) == ["hello there how are you"]
    assert (shallow.counts["card"], shallow.counts["symbols"]) == (3, 4)
    assert deep.dialogue.turns == ()
    assert sum(deep.counts[kind] for kind in ("symbols", "empty", "joined")) == 43  # all turns
    assert prepared(nested(20), DataConfig(min_turns=2, clean=rules)) is None


def test_a_conversation_whose_cleaning_fails_is_absent_alone(monkeypatch):
    config = DataConfig(min_turns=2, clean=CleanConfig(mask_pii=True))
    corpus = [talk(f"c{i}", f"hello {i}", "and hello") for i in range(4)]
    expected = [r for i in (0, 1, 3) for r in training_records([corpus[i]], TOKENIZER, config)]
    true_prepared = fedattn.records.prepared

    class Panic(BaseException):
        """As of compiled code: no Exception."""

    def fail(item, *rest):
        if item.id == "c2":
            raise Panic("canary")
        return true_prepared(item, *rest)

    monkeypatch.setattr(fedattn.records, "prepared", fail)
    assert training_records(corpus, TOKENIZER, config) == expected


@pytest.fixture
def dirty(tmp_path):
    """A config over conversations that each have something to mask."""
    items = conversations()
    for item in items:
        item["turns"][1]["text"] += " write to ann@example.org"
    return tiny(write(tmp_path / "chats.jsonl", items)).data


def test_the_token_store_and_memory_hold_the_same_cleaned_training_data(
    dirty, tmp_path, monkeypatch
):
    from fedattn.contribution import records

    monkeypatch.delenv(VARIABLE, raising=False)
    cleaned = dirty.model_copy(update={"clean": CleanConfig(mask_pii=True)})
    tokenizer = Tokenizer(260)
    in_memory = [list(records(cleaned, i, tokenizer)) for i in range(4)]
    write_tokens(cleaned, 260, tmp_path / "tokens")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tokens"))
    stored = open_tokens(cleaned, 260)
    assert [list(stored.train(i)) for i in range(4)] == in_memory
    said = [tokenizer.decode(turn) for part in in_memory for each in part for turn in each.turns]
    assert any("write to <email>" in text for text in said)
    assert not any("@" in text for text in said)
    # held-out conversations are as they were, and nobody moved
    whole = load_partition(cleaned)
    assert whole == load_partition(dirty)
    assert any("@" in turn.text for item in whole.test for turn in item.turns)
    for kept, part in ((stored.test, whole.test), (stored.validation, whole.validation)):
        assert [each.turns for each in kept] == [
            each.turns for each in tokenize(part, tokenizer, 1 << 30)
        ]
    assert open_tokens(dirty, 260) is None  # another cleaning, another store


def test_a_device_cleans_its_own_data_if_its_policy_says_so(dirty):
    from fedattn.contribution import records

    own = OwnData(path=dirty.path, clean=CleanConfig(mask_pii=True)).config
    assert own.clean.mask_pii
    tokenizer = Tokenizer(260)
    said = [tokenizer.decode(turn) for each in records(own, 0, tokenizer) for turn in each.turns]
    assert len(said) > 100
    assert not any("@" in text for text in said)


def test_the_description_names_the_cleaning_and_only_if_there_is_any():
    assert "cleaned" not in describe(DataConfig())
    said = describe(DataConfig(clean=EVERYTHING))
    for part in (
        "each by itself",
        "without words",
        "hardly English",
        "than 2 words",
        "(US) masked",
    ):
        assert part in said
    # what a device with data of its own does is not the config's to say
    assert said.endswith("; a device with data of its own cleans as its own policy says")
    assert "on the device" not in said
