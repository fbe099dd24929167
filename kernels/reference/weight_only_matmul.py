"""Products of float activations and quantized weights in float64; for tests."""

from torch import Tensor


def weight_only_matmul_reference(
    x: Tensor, quantized: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x [M, K], quantized [N, K'] integers, scales [N, G], bias [N] -> [M, N] float64. K' is K with zeros behind."""
    groups = quantized.double().view(*scales.shape, -1) * scales.double()[..., None]
    out = x.double() @ groups.flatten(1)[:, : x.shape[1]].t()
    return out if bias is None else out + bias.double()
