"""The texts that a job began with are those it goes on with, whatever a cache holds by then, or a model would write."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash

from ..errors import CompressError
from .distill.dataset import Dataset
from .texts import Example, Tokens
from .training.checkpoint import load_checkpoint, save_checkpoint

log = logging.getLogger(__name__)

TEXTS = "texts.pt"


def fingerprint_of(examples: Sequence[Example] | None) -> str:
    """Hex digest of all that is in them; None, for those that a model writes by itself, has one too."""
    digest = xxhash.xxh3_128()
    for example in examples or ():
        digest.update(f"{example!r}{example.topic or ''}".encode())
    return digest.hexdigest()


def kept_dataset(work: Path, given: str, make: Callable[[], Dataset]) -> Dataset:
    """What `make` makes when the job begins, and the same again whenever it goes on.

    Args:
        work: the folder that the job keeps its work in.
        given: fingerprint of the examples that `make` makes it of; where others were given before, a line says so.

    Raises CompressError where it cannot be kept.
    """
    file = work / TEXTS
    state = load_checkpoint(file)
    if state is None:
        dataset = make()
        save_checkpoint(file, {"given": given, **_packed(dataset)})
        return dataset
    if state["given"] != given:
        log.warning(
            "Going on with the texts that this began with, not with those that the cache holds now; remove %s to begin "
            "afresh with these.",
            work,
        )
    return _unpacked(state)


def read_dataset(work: Path) -> Dataset:
    """What another process keeps there. Raises CompressError where it cannot be read."""
    state = load_checkpoint(work / TEXTS)
    if state is None:
        raise CompressError(
            f"{work / TEXTS} is not there; processes that train together need a folder that all can read."
        )
    return _unpacked(state)


def _packed(dataset: Dataset) -> dict[str, Any]:
    """As few tensors: a file of one for each text would take minutes."""
    texts = [*dataset.held_out, *dataset.train]
    return {
        "ids": torch.tensor([token for text in texts for token in text.ids], dtype=torch.int32),
        "learn": torch.tensor([learnt for text in texts for learnt in text.learn], dtype=torch.bool),
        "lengths": [len(text.ids) for text in texts],
        "topics": [text.topic for text in texts],
        "held_out": len(dataset.held_out),
        "counts": [dataset.examples, dataset.duplicates, dataset.unusable],
    }


def _unpacked(state: dict[str, Any]) -> Dataset:
    lengths, held_out = state["lengths"], state["held_out"]
    ids, learn = (state[name].split(lengths) for name in ("ids", "learn"))
    topics = state.get("topics", [None] * len(lengths))  # a job begun by an earlier version has none
    texts = [
        Tokens(own.tolist(), learnt.tolist(), topic)
        for own, learnt, topic in zip(ids, learn, topics, strict=True)
    ]
    return Dataset(texts[held_out:], texts[:held_out], *state["counts"])
