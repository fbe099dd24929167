"""Texts that a tiny model learns within a few steps, and such a model to train."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from penstock.compress.texts import Tokens


def counting_texts(first: int, count: int) -> list[Tokens]:
    """Counting upwards, from anywhere."""
    runs = [[3 + (first + 7 * i + j) % 200 for j in range(8 + i % 9)] for i in range(count)]
    return [Tokens(ids, [False] + [True] * (len(ids) - 1)) for ids in runs]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
