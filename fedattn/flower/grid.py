"""The embedded engine's grid, by its import place."""

from fedattn.flower.embedded.grid import EmbeddedGrid, Tap

__all__ = ["EmbeddedGrid", "Tap"]
