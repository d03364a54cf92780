"""Federated, differentially private fine-tuning of an attention-based dialogue generator.

>>> import fedattn
>>> generator = fedattn.load("public")  # or a run directory
>>> generator.reply(["hi, how are you?"], max_tokens=5).text == ""
False
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedattn.dialogue_generator import DialogueGenerator, load

__version__ = "0.1.0"
__all__ = ["DialogueGenerator", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Only who asks for a model waits for torch: every module imports this one.
    if name in ("DialogueGenerator", "load"):
        from fedattn import dialogue_generator

        return getattr(dialogue_generator, name)
    raise AttributeError(f"module 'fedattn' has no attribute {name!r}")
