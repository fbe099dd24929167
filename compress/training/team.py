"""Processes that train one student together: each on a device, with batches of its own, and one mean of the gradients.

`accelerate launch` (or torchrun) starts them, accelerate finds device and backend. Alone, nothing here costs a thing.
"""

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
        learning = [parameter for parameter in learning if parameter.requires_grad]
        means = torch.stack([part.detach().float() for part in own.values()])
        # Of an expert that none of anybody's tokens went to there is no gradient, which is not the same as zeros.
        reached = [parameter.grad is not None for parameter in learning]
        counts = torch.tensor([loss.positions, tokens, *reached], dtype=torch.float64, device=means.device)
        self._all_reduce(counts)
        positions, all_tokens, *reached_by = counts.tolist()
        gradients = [_gradient(parameter) for parameter, by in zip(learning, reached_by, strict=True) if by]
        weighted = torch.cat([*(gradient.flatten() for gradient in gradients), means]).mul_(loss.positions)
        self._all_reduce(weighted)
        weighted /= max(1.0, positions)
        *parts, found = torch.split(weighted, [*(gradient.numel() for gradient in gradients), len(means)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return Told(dict(zip(own, found.tolist(), strict=True)), int(all_tokens))

    def largest(self, *numbers: float) -> list[float]:
        """Of each the largest that anyone has."""
        if self.place.size == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self._all_reduce(shared, distributed.ReduceOp.MAX)
        found: list[float] = shared.tolist()
        return found

    def gathered(self, own: Any) -> list[Any]:
        """Everybody's, by rank."""
        if self.place.size == 1:
            return [own]
        everybody: list[Any] = [None] * self.place.size
        with self._telling():
            distributed.all_gather_object(everybody, own)
        return everybody

    def check_same(self, what: str, own: Any) -> None:
        """Raises CompressError where not all have the same."""
        everybody = self.gathered(own)
        if any(theirs != own for theirs in everybody):
            raise CompressError(
                f"The processes that train together found different ones of the {what} beside the output; write to a folder "
                "that all of them see."
            )

    def wait(self) -> None:
        """Until all are here."""
        self.largest(0.0)

    def _all_reduce(self, shared: Tensor, how: Any = distributed.ReduceOp.SUM) -> None:
        with self._telling():
            distributed.all_reduce(shared, how)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # each backend's own
            raise CompressError(
                f"Another of the {self.place.size} processes that train together has ended; what it says tells why."
            ) from error


ALONE = Team()


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Zeros where only others have one."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@contextmanager
def team_of(processes: int, device: str) -> Iterator[Team]:
    """This process's place among those that a launcher started, and its device; alone without a launcher.

    Args:
        processes: how many a launcher started.
        device: "cpu" or "cuda".

    Raises CompressError without accelerate.
    """
    if processes == 1:
        yield ALONE
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise CompressError(
            f"{processes} processes were started to train together, which needs accelerate: "
            "pip install 'penstock[devices]'."
        ) from error
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    try:
        yield Team(Place(state.process_index, state.num_processes), str(state.device))
    finally:
        state.destroy_process_group()
