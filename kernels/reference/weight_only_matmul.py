"""Products of float activations and quantized weights in float64; for tests."""

from torch import Tensor


def weight_only_matmul_reference(
    x: Tensor, quantized: Tensor, scales: Tensor, bias: Tensor | None = None, zeros: Tensor | None = None
) -> Tensor:
    """x [M, K], quantized [N, K'] integers, scales and zeros [N, G], bias [N] -> [M, N] float64. K' is K or more."""
    groups = quantized.double().view(*scales.shape, -1)
    if zeros is not None:
        groups = groups - zeros[..., None]
    weight = (groups * scales.double()[..., None]).flatten(1)
    out = x.double() @ weight[:, : x.shape[1]].t()
    return out if bias is None else out + bias.double()
