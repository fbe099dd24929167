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
