"""Attention of a model, for a reply to a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedattn.attention_view.attention_map import AttentionMap, rounded
from fedattn.attention_view.rollout import rollout
from fedattn.errors import AttentionError
from fedattn.generate import context_of
from fedattn.model import AttentionGenerator
from fedattn.tokens import Tokenizer

Method: TypeAlias = Literal["mean", "rollout"]


def attention_of(
    model: AttentionGenerator,
    tokenizer: Tokenizer,
    turns: Sequence[str],
    reply_ids: Sequence[int],
    *,
    layer: int | None = None,
    head: int | None = None,
    method: Method = "mean",
) -> AttentionMap:
    """Where each of `reply_ids` looked in `turns`, oldest first, the last one the other's.

    `mean`: cross-attention, averaged over decoder layers and heads, or of one `layer` or `head`
    (from 0). `rollout`: attention through all layers (`rollout`). Weights are rounded to 4
    decimals. AttentionError: no turn, or a layer or head that is not there.
    """
    if not turns:
        raise AttentionError("attention: no turn to look at; give at least one")
    context = context_of(turns, tokenizer, model.shape.context_tokens)
    weights = context_weights(model, context, reply_ids, layer=layer, head=head, method=method)
    seen = turns_in(context, tokenizer)
    cut_off = len(turns) - (seen[-1] + 1)  # turns that the window leaves out, the oldest
    return AttentionMap(
        context=context_pieces(tokenizer, context),
        turns=tuple(turn + cut_off for turn in seen),
        reply=token_pieces(tokenizer, reply_ids),
        weights=tuple(rounded(row) for row in weights.tolist()),
    )


@torch.no_grad()
def context_weights(
    model: AttentionGenerator,
    context: Sequence[int],
    reply_ids: Sequence[int],
    *,
    layer: int | None = None,
    head: int | None = None,
    method: Method = "mean",
) -> Tensor:
    """(T, S) float64 on the CPU: row t is the attention when reply token t was written.

    That is at the place before it, whose input is <bos> or reply token t - 1. As `attention_of`.
    """
    layers, heads = model.shape.decoder_layers, model.shape.heads
    _check("layer", layer, layers)
    _check("head", head, heads)
    if method == "rollout" and not (layer is None and head is None):
        raise AttentionError("rollout goes through all layers and heads; drop layer and head")
    if not reply_ids:
        return torch.zeros(0, len(context), dtype=torch.float64)
    device = next(model.parameters()).device
    bos = model.shape.vocab_size + 1  # as in `Tokenizer`
    _, seen = model.attend(
        torch.tensor([list(context)], device=device),
        torch.tensor([[bos, *reply_ids[:-1]]], device=device),
    )
    cross = [weights[0] for weights in seen.cross]  # (H, T, S) each
    if method == "rollout":
        encoder, decoder = ([each[0] for each in part] for part in (seen.encoder, seen.decoder))
        return rollout(encoder, decoder, cross)
    chosen = torch.stack(cross if layer is None else [cross[layer]]).to("cpu", torch.float64)
    return chosen.mean((0, 1)) if head is None else chosen[:, head].mean(0)


def turns_in(context: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The turn of each context token, 0 the oldest that is (partly) there; it may lack its marker.

    A turn begins at its marker: text never encodes to one.
    """
    found: list[int] = []
    turn = 0
    for place, token in enumerate(context):
        turn += place > 0 and token in (tokenizer.me, tokenizer.you)
        found.append(turn)
    return found


def context_pieces(tokenizer: Tokenizer, context: Sequence[int]) -> tuple[str, ...]:
    """The text of each context token; characters never reach over the border of turns."""
    found: list[str] = []
    turns = turns_in(context, tokenizer)
    for turn in range(turns[-1] + 1 if turns else 0):
        ids = [token for token, its in zip(context, turns, strict=True) if its == turn]
        found += token_pieces(tokenizer, ids)
    return tuple(found)


def token_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each of `ids` begins; together they are `tokenizer.decode(ids)`.

    A character whose bytes are spread over tokens belongs to the first of them, the others have
    none, as have special tokens. Bytes that are no UTF-8 are U+FFFD.
    """
    text = tokenizer.decode(ids)
    # A decoded beginning ends in one U+FFFD where it cuts a character: it has as many characters
    # as the whole text has up to there.
    ends = [len(tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]
    return tuple(text[start:end] for start, end in pairwise(ends))


def _check(name: str, value: int | None, count: int) -> None:
    if value is not None and not 0 <= value < count:
        raise AttentionError(f"{name} is {value}, must be in 0..{count - 1}")
