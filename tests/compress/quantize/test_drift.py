"""What a linear is off by once the layers before it are rounded; and where that cannot be told."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.compress.quantize.drift import Streams
from penstock.compress.quantize.inputs import Inputs

WIDTH, ROWS = 8, 40


class Block(nn.Module):
    """`second` reads what `first` writes: every row, or as an expert those alone whose first number is above zero."""

    def __init__(self, chooses: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 4, bias=False)
        self.chooses = chooses

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.second(x[x[..., 0] > 0] if self.chooses else x)
        return out


def streams(block: Block, keep: Tensor) -> tuple[Streams, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    right = torch.randn(1, ROWS, WIDTH, generator=draw)
    own = right + 0.1 * torch.randn(1, ROWS, WIDTH, generator=draw)
    passage: Any = SimpleNamespace(
        blocks=[block],
        batches=[SimpleNamespace(keep=keep)],
        tokens=int(keep.sum()),
        step=lambda index, number, hidden: block(hidden),
    )
    return Streams(passage, 0, [right], [own]), right[keep], own[keep]


def test_the_sums_are_of_tokens_with_what_is_rounded_already_in_its_place() -> None:
    block, keep = Block(chooses=False), torch.ones(1, ROWS, dtype=torch.bool)
    keep[0, 30:] = False
    found, right, own = streams(block, keep)
    stored = block.first.weight.data
    rounded = (stored * 4).round() / 4
    given = Inputs(["second"], None, torch.zeros(WIDTH, WIDTH), torch.zeros(0, WIDTH))
    drifted = found.drifted(given, {"first": rounded})
    right, own = right @ stored.t(), own @ rounded.t()
    assert drifted.drift is not None and drifted.right_sample is not None
    torch.testing.assert_close(drifted.hessian, own.t() @ own)
    torch.testing.assert_close(drifted.drift, (right - own).t() @ own)
    torch.testing.assert_close(drifted.sample, own)
    torch.testing.assert_close(drifted.right_sample, right)
    assert block.first.weight.data_ptr() == stored.data_ptr(), "the block is as it was"


@pytest.mark.parametrize("shift", [0.0, -100.0], ids=["other tokens", "none"])
def test_of_a_layer_that_gets_some_of_the_tokens_nothing_is_said(shift: float) -> None:
    found, _, _ = streams(Block(chooses=True), torch.ones(1, ROWS, dtype=torch.bool))
    found.straight[0] += shift
    given = Inputs(["second"], None, torch.zeros(WIDTH, WIDTH), torch.zeros(0, WIDTH))
    assert found.drifted(given, {}) is given
