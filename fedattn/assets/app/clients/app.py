"""Flower entry point of a client: `clients.app:app` in pyproject.toml."""

from fedattn.flower.client_app import app

__all__ = ["app"]
