"""Attention that people can read: where each word of a reply looked in the conversation.

    attention_map   what was looked at, as plain numbers and text; as JSON
    compute         from a model: one head, an average, or attention rollout (torch)
    rollout         the formula of attention rollout for an encoder-decoder (torch)
    visible         text that can be shown, and how dark
    terminal, page, picture       the three views
    faithfulness    is the most attended turn the one that matters? a number (torch)

Attention is not an explanation by itself: docs/attention.md.
"""
