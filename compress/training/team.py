"""Processes that train one student together: each on a device, with batches of its own, and one mean of the gradients.

`accelerate launch` (or torchrun) starts them, accelerate finds device and backend. Alone, nothing here costs a thing.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ...errors import CompressError
from .batches import ONLY, Place
from .objective import Loss

# Others wait while the leader has a teacher answer prompts, or measures.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Told:
    """What a step came to, over the batches of all: means over their positions, and their tokens with padding."""

    means: dict[str, float]
    tokens: int


@dataclass(frozen=True, slots=True)
class Team:
    """All of its methods are called by all of its processes, in the same order.

    Attributes:
        place: which of how many this process is.
        device: "cpu", "cuda:1"; None, alone, for whichever the job names.
    """

    place: Place = ONLY
    device: str | None = None

    @property
    def leads(self) -> bool:
        """One keeps checkpoints, writes the log, measures and writes the folder."""
        return self.place.rank == 0

    def averaged(self, learning: Iterable[nn.Parameter], loss: Loss, tokens: int) -> Told:
        """Turns the gradients of the own batch's mean loss into those of the mean over all positions of all batches."""
        own = {"loss": loss.value, **loss.parts}
        if self.place.size == 1:
            return Told({name: part.item() for name, part in own.items()}, tokens)
        for parameter in learning:
            if parameter.grad is None:  # an expert that none of these tokens went to
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
        means = torch.stack([part.detach().float() for part in own.values()])
        weighted = torch.cat([*(gradient.flatten() for gradient in gradients), means]) * loss.positions
        counts = torch.tensor([loss.positions, tokens], dtype=torch.float64, device=weighted.device)
        distributed.all_reduce(weighted)
        distributed.all_reduce(counts)
        positions, all_tokens = counts.tolist()
        weighted /= max(1.0, positions)
        *parts, found = torch.split(weighted, [*(gradient.numel() for gradient in gradients), len(means)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return Told(dict(zip(own, found.tolist(), strict=True)), int(all_tokens))

    def largest(self, *numbers: float) -> list[float]:
        """Of each the largest that anyone has."""
        if self.place.size == 1:
            return list(numbers)
        shared: Tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        found: list[float] = shared.tolist()
        return found

    def gathered(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        """Everybody's, by rank."""
        if self.place.size == 1:
            return [own]
        everybody: list[Any] = [None] * self.place.size
        distributed.all_gather_object(everybody, own)
        return everybody

    def wait(self) -> None:
        """Until all are here."""
        self.largest(0.0)


ALONE = Team()


def processes_started() -> int:
    """How many a launcher started of this command; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def team_of(device: str) -> Iterator[Team]:
    """This process's place among those that a launcher started, and its device; alone without a launcher.

    Args:
        device: "cpu" or "cuda".

    Raises CompressError without accelerate.
    """
    if processes_started() == 1:
        yield ALONE
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise CompressError(
            f"{processes_started()} processes were started to train together, which needs accelerate: "
            "pip install 'penstock[devices]'."
        ) from error
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    try:
        yield Team(Place(state.process_index, state.num_processes), str(state.device))
    finally:
        state.destroy_process_group()
