"""Memory that the programs of one launch share: partial sums, and how many of them have arrived.

Launches of one stream follow one another, so all of them share it, and each leaves the arrival counts at zero.
"""

import torch
from torch import Tensor

LEAST_TILES = 1 << 14


class Workspace:
    """Sums of `dtype` and int32 counts for each device, which grow with what is asked for.

    `least_sums`: what is enough for most, so that it seldom grows.
    """

    def __init__(self, dtype: torch.dtype, least_sums: int) -> None:
        self._dtype, self._least_sums = dtype, least_sums
        self._current: dict[torch.device, tuple[Tensor, Tensor]] = {}
        # A CUDA graph that was recorded with a smaller one goes on writing there.
        self._outgrown: list[tuple[Tensor, Tensor]] = []

    def of(self, device: torch.device, num_sums: int, num_tiles: int) -> tuple[Tensor, Tensor]:
        """At least so many sums and counts; all of them zero at first."""
        found = self._current.get(device)
        if found is not None and found[0].numel() >= num_sums and found[1].numel() >= num_tiles:
            return found
        if found is not None:
            self._outgrown.append(found)
        sums = torch.zeros(max(num_sums, self._least_sums), dtype=self._dtype, device=device)
        counts = torch.zeros(max(num_tiles, LEAST_TILES), dtype=torch.int32, device=device)
        self._current[device] = sums, counts
        return sums, counts
