"""The default private corpus: real two-person chats of the `chitchat-dataset` package (MIT).

7,168 conversations, 258,145 utterances, 1,315 user ids (Myers, Etchart and Fulda 2020,
"Conversational Scaffolding"). The package's dataset.json maps a conversation id to `messages`, a
list of turns, each a list of utterances {text, sender, timestamp}.
"""

from __future__ import annotations

import json
from importlib.metadata import version

from fedattn.data.dialogue import Dialogue, Turn, merge
from fedattn.data.packages import package_folder
from fedattn.errors import DataError

PACKAGE = "chitchat-dataset"


def load_chitchat() -> list[Dialogue]:
    """Every conversation with its utterances of one turn joined by a space, in file order.

    Unfiltered: some have one sender or no text. A missing or damaged package raises DataError.
    """
    path = package_folder("chitchat_dataset", install=PACKAGE) / "dataset.json"
    try:
        return [
            Dialogue(id, merge(Turn(item["sender"], item["text"]) for item in _utterances(body)))
            for id, body in json.loads(path.read_bytes()).items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # raised below: a raise here would keep an exception that can carry the text
    raise DataError(f"dataset.json of {PACKAGE} cannot be read; reinstall the package")


def chitchat_version() -> str:
    """The installed package and its version, e.g. `chitchat-dataset 0.9.0`."""
    return f"{PACKAGE} {version(PACKAGE)}"


def _utterances(body: dict[str, list[list[dict[str, str]]]]) -> list[dict[str, str]]:
    return [utterance for turn in body["messages"] for utterance in turn]
