"""The public start: a corpus of public text, and the generator pre-trained on it.

recipe.py          every key of configs/pretrain.yaml
sources.py         the public sources, their packages and licences
aiml.py prose.py wordnet.py    parsers
openers.py         everyday chat openers, written by hand (openers.yaml)
character_lstm.py  textgenrnn's public network in torch
sampler.py         dialogues drawn from it
shards.py          kept on disk, one file a seed
filters.py         what is not learned from
corpus.py          the corpus on disk and its manifest
training.py        the curriculum
card.py            the model card, from the facts
start.py           all of it in one call

No private text is read here, and no choice was made by looking at any.
"""

from fedattn.pretraining.corpus import make_corpus, read_corpus
from fedattn.pretraining.recipe import Recipe, load_recipe
from fedattn.pretraining.start import make_public_start
from fedattn.pretraining.training import Trained, pretrain

__all__ = [
    "Recipe",
    "Trained",
    "load_recipe",
    "make_corpus",
    "make_public_start",
    "pretrain",
    "read_corpus",
]
