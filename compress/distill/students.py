"""Students made of a teacher's layers, or from a configuration with fresh weights."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import CompressError
from ..plain_model import blocks


def take_layers(teacher: Any, count: int) -> Any:
    """A copy of `teacher` with `count` of its layers, evenly spaced, the first and the last among them (Minitron's depth
    pruning, Muralidharan et al. 2024, without its search).

    Raises CompressError for a count that leaves nothing out or nothing.
    """
    config = teacher.config.get_text_config()
    depth = config.num_hidden_layers
    if not 1 <= count < depth:
        raise CompressError(
            f"layers is {count}; the teacher has {depth}, so a student by layers has 1 to {depth - 1}.",
            param="layers",
        )
    kept = evenly_spaced(count, depth)
    name, _ = blocks(teacher)
    student = copy.deepcopy(teacher)
    owner, _, attribute = name.rpartition(".")
    layers: nn.ModuleList = student.get_submodule(name)
    setattr(student.get_submodule(owner), attribute, nn.ModuleList([layers[i] for i in kept]))
    for place, layer in enumerate(student.get_submodule(name)):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    own = student.config.get_text_config()
    for key, value in vars(own).items():
        # One entry a layer, kinds of attention for one; a list of as many end tokens is something else.
        if "layer" in key and isinstance(value, list) and len(value) == depth:
            setattr(own, key, [value[i] for i in kept])
    own.num_hidden_layers = count
    return student


def evenly_spaced(count: int, depth: int) -> list[int]:
    """`count` places of range(depth), both ends among them where there are two."""
    if count == 1:
        return [0]
    return [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def from_config(file: Path, seed: int) -> Any:
    """A model of fresh weights, float32, as `file` (a config.json) describes it.

    Raises CompressError where it cannot be read or made.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(file)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a configuration's own checks raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CompressError(
            f"{file} describes no causal language model that can be made: {reason}", param="student_config"
        ) from error
    return student
