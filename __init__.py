"""Lets static tools follow `from ..scheduler import X` across the folders; never shipped in the wheel."""
