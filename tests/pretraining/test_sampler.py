"""What the sampler promises of its dialogues, on a small random network."""

from dataclasses import replace

import numpy as np

from fedattn.pretraining.character_lstm import NAMES, CharacterLSTM
from fedattn.pretraining.openers import Openers, load_openers, load_talk
from fedattn.pretraining.sampler import END, WRITABLE, Sampling, sample

VOCABULARY = {name: index + 1 for index, name in enumerate([*WRITABLE, "[", END])}
OPENERS = load_openers()
SAMPLING = Sampling(seed=3, characters=1500, streams=16, turns=3, longest_turn=30)


def network(seed=0):
    rng = np.random.default_rng(seed)
    size, embedded, units = len(VOCABULARY) + 1, 6, 4
    features = embedded + 2 * units
    shapes = (
        (size, embedded),
        (embedded, 4 * units),
        (units, 4 * units),
        (8 * units,),
        (units, 4 * units),
        (units, 4 * units),
        (8 * units,),
        (features, 1),
        (features, size),
        (size,),
    )
    return CharacterLSTM(
        {
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in zip(NAMES, shapes, strict=True)
        }
    )


def dialogues(sampling=SAMPLING, openers=None):
    return list(sample(network(), VOCABULARY, openers or OPENERS, sampling))


def test_a_seed_gives_the_same_dialogues_and_another_seed_others():
    assert dialogues() == dialogues()
    assert dialogues() != dialogues(replace(SAMPLING, seed=4))


def test_more_characters_go_on_where_fewer_stopped():
    few, more = dialogues(), dialogues(replace(SAMPLING, characters=2500))
    assert len(few) < len(more)
    assert more[: len(few)] == few


def test_every_dialogue_follows_its_script():
    openers = Openers({"pet": ("cat", "dog")}, ("do you have a {pet}? | yes, ~ | nice!",), ("~",))
    for turns in dialogues(openers=openers):
        assert turns[0] in ("do you have a cat?", "do you have a dog?")
        assert turns[1].startswith("yes,")
        assert turns[2] == "nice!"


def test_turns_are_short_and_hold_no_character_that_opens_a_tag():
    longest = max(map(len, OPENERS.scripts))
    for turns in dialogues():
        for turn in turns:
            assert len(turn) < SAMPLING.longest_turn + longest
            assert set(turn) <= set(WRITABLE)


def test_one_word_fills_a_script_all_through():
    rng = np.random.default_rng(0)
    openers = Openers({"pet": ("cat", "dog", "fish")}, ("a {pet} | the {pet} ~",), ("~",))
    for _ in range(20):
        first, second = openers.draw(rng, 2)
        assert first.text.split()[1] == second.text.split()[1]
        assert (first.goes_on, second.goes_on) == (False, True)


def test_shipped_openers_fill_without_a_rest():
    rng = np.random.default_rng(1)
    for _ in range(300):
        for opening in OPENERS.draw(rng, 6):
            assert not set(opening.text) & set("[]{}|~/")


def test_shipped_talk_is_whole_and_fills_without_a_rest():
    talk, rng = load_talk(), np.random.default_rng(1)
    for _ in range(300):
        turns = talk.draw(rng, 2)
        assert len(turns) > 1
        assert not any(opening.goes_on for opening in turns)
        assert not set("".join(opening.text for opening in turns)) & set("[]{}|~/")
