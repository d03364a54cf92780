"""Parsers of public sources on tiny inputs."""

import pytest

from fedattn.data import Dialogue, Turn
from fedattn.errors import DataError
from fedattn.pretraining.aiml import parse_aiml
from fedattn.pretraining.prose import cut, pieces, prose
from fedattn.pretraining.wordnet import examples


def category(pattern, template):
    return (
        f"<aiml><category><pattern>{pattern}</pattern>"
        f"<template>{template}</template></category></aiml>"
    ).encode()


def aiml(pattern, template):
    return list(parse_aiml(category(pattern, template), where="a.aiml"))


@pytest.mark.parametrize(
    "template",
    [
        "<srai>HELLO</srai>",
        "You said <star/>.",
        "I am <bot name='age'/>.",
        "Hello <get name='name'/>",
        "It is <random><li>a</li><li>b</li></random>.",
        "<condition name='x' value='y'>z</condition>",
        "<think>silent</think>",
        "<random><li><srai>X</srai></li></random>",
    ],
)
def test_a_template_that_computes_its_text_gives_no_reply(template):
    assert aiml("HI", template) == []


def test_each_item_of_a_random_is_a_reply():
    found = aiml("GOOD BYE", "<random><li>Bye.</li> <li>See <em>you</em>.</li></random>")
    assert found == [("good bye", ("Bye.", "See you."))]


def test_what_is_remembered_is_also_said_and_thoughts_are_not():
    template = 'I like <set name="it">tea</set>.<think><set name="topic">TEA</set></think>'
    assert aiml("WHAT DO YOU LIKE *", template) == [("what do you like?", ("I like tea.",))]


def test_entities_and_broken_xml_are_refused_by_file_name():
    bomb = b'<!DOCTYPE a [<!ENTITY e "eee">]><aiml><category/></aiml>'
    for text in (bomb, b"<aiml><category>"):
        with pytest.raises(DataError, match=r"bad\.aiml"):
            list(parse_aiml(text, where="bad.aiml"))


def test_pieces_lose_no_word_and_break_at_sentence_ends_alone():
    text = "One two three. Four? Five; six seven eight nine ten! Eleven"
    parts = list(pieces(text, 20))
    assert " ".join(parts) == text
    assert all(part[-1] in ".?;!" for part in parts[:-1])


def test_prose_alternates_two_voices_and_a_lone_piece_is_no_dialogue():
    (dialogue,) = prose("book", "One one. Two two. Three three.", 8)
    assert [turn.speaker for turn in dialogue.turns] == ["a", "b", "a"]
    assert list(prose("book", "One.", 8)) == []


def test_a_cut_turn_stays_with_its_speaker():
    dialogue = Dialogue("d", (Turn("x", "One. Two."), Turn("y", "Three.")))
    assert [(turn.speaker, turn.text) for turn in cut(dialogue, 5).turns] == [
        ("x", "One."),
        ("x", "Two."),
        ("y", "Three."),
    ]


def test_wordnet_gives_sentences_and_neither_quotations_nor_its_licence():
    text = (
        '  1 This software and database | "is being provided to you"\n'
        '0001 00 s 01 a 0 000 | able; "he was able to swim"; "two words"; "all the world"- Shak\n'
        "0002 00 s 01 b 0 000 | without an example\n"
    )
    assert list(examples(text)) == [["able", "he was able to swim"]]
