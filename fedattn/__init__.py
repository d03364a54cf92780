"""Federated, differentially private fine-tuning of an attention-based dialogue generator."""

__version__ = "0.1.0"
