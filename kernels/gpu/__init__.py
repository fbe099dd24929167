"""Triton kernels and their launchers, one operation per file. Importing one of those imports Triton."""
