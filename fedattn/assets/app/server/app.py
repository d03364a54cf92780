"""Flower entry point of the server: `server.app:app` in pyproject.toml."""

from fedattn.flower.server_app import app

__all__ = ["app"]
