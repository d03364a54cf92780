"""Conversations: where they come from, which of them train, and who owns them.

dialogue.py   Turn, Dialogue, Example
chitchat.py   the default private corpus
jsonl.py      import of a user's own conversations
filters.py    which conversations and replies are kept, record by record
clean.py      cleaning of training conversations, record by record: clean_text.py (tidying, junk),
              clean_pii.py (masking), clean_language.py
clean_file.py a file cleaned into another, before training; clean_duplicates.py: between records
splits.py     owners, splits, silos, thinning, by salted hashes
load.py       from a config to conversations
partitions.py with their owners, read once a process
summary.py    counts for the data's owner
plays.py      public plays for pre-training
"""

from fedattn.data.dialogue import Dialogue, Example, Turn
from fedattn.data.filters import examples
from fedattn.data.load import describe, load_dialogues
from fedattn.data.partitions import data_stamp, load_partition
from fedattn.data.splits import Partition, owner_of, partition

__all__ = [
    "Dialogue",
    "Example",
    "Partition",
    "Turn",
    "data_stamp",
    "describe",
    "examples",
    "load_dialogues",
    "load_partition",
    "owner_of",
    "partition",
]
