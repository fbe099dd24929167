"""Penstock: an LLM proxy with its own continuous-batching engine and completion cache."""

__version__ = "0.1.0"
