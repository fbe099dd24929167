"""Fixtures of these tests."""

from chips import chip

__all__ = ["chip"]
