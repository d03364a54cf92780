"""Which conversations there are, who owns them, and what is cleaned before they train."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedattn.config.section import Clients, Count, Rate, Section, Share


class CleanConfig(Section):
    """Cleaning of conversations on the device before they train; each record by itself.

    What is removed or masked is counted on the device alone (`fedattn data clean`).
    """

    junk: bool = False  # drop turns that hold no words: symbols, keyboard mashing, markup
    english: bool = False  # drop conversations that are hardly English
    min_reply_words: Annotated[int, Field(ge=0)] = 0  # replies with fewer words stay context
    mask_pii: bool = False  # emails, phones, URLs, card-like numbers become placeholders
    region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "US"  # whose national phones are known


class DataConfig(Section):
    """Where conversations come from and who owns them (DESIGN section 3)."""

    source: Literal["chitchat", "jsonl"] = "chitchat"
    path: str | None = None  # of the JSONL file; with source: jsonl alone
    skip_bad: bool = False  # leave refused JSONL lines out instead of stopping
    salt: Annotated[str, Field(min_length=1)] = "fedattn"  # decides owners, splits, thinning
    clients: Clients = 8
    # hash: owners are spread over `clients` silos by a salted hash; person: every person of the
    # corpus who is not held out is a client, those who own no conversation too
    assign: Literal["hash", "person"] = "hash"
    validation_share: Share = 0.1  # of users
    test_share: Share = 0.1  # of users
    min_turns: Annotated[int, Field(ge=2)] = 4
    max_reply_bytes: Count = 512
    keep_rate: Rate = 1.0  # a conversation trains with this probability, by its own hash
    thin: dict[str, Rate] = Field(default_factory=dict)  # a lower keep_rate for one owner
    clean: CleanConfig = Field(default_factory=CleanConfig)  # of training data, on the device

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.source == "jsonl") != (self.path is not None):
            raise ValueError("set `path` with `source: jsonl` and only then")
        if self.validation_share + self.test_share > 0.5:
            raise ValueError("validation_share + test_share must be at most 0.5")
        return self
