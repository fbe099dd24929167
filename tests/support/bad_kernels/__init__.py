"""Kernels that are wrong on purpose, for the ahead-of-time check to notice."""
