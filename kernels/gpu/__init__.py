"""Triton kernels and their launchers, one operation per file. Importing any of them imports Triton."""
