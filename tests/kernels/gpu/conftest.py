"""Kernels run on a GPU where there is one, else as Python through Triton's interpreter."""

import pytest
import torch
from triton_interpreter import make_bf16_right

if not torch.cuda.is_available():
    make_bf16_right()


@pytest.fixture
def device() -> torch.device:
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What launchers allocate holds NaN, or an integer that no result is: as memory may, and seldom does by itself."""
    empty = torch.empty

    def poisoned(*size: object, **options: object) -> torch.Tensor:
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 113)

    monkeypatch.setattr(torch, "empty", poisoned)
