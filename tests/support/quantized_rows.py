"""Random activations in eight bits, every integer and every zero among them."""

import torch

from penstock.kernels.quantized_rows import QuantizedRows


def quantized_rows(m: int, k: int, device: torch.device) -> QuantizedRows:
    return QuantizedRows(
        values=torch.randint(-128, 128, (m, k), dtype=torch.int8, device=device),
        scale=torch.rand(m, 1, device=device) + 0.01,
        zero=torch.randint(-128, 128, (m, 1), device=device).float(),
    )
