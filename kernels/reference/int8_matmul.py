"""INT8 matmul by int64 arithmetic; for tests."""

from torch import Tensor


def int8_matmul_reference(
    quantized: Tensor, act_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """quantized [M, K] int8, act_scale [M, 1], weight [N, K] int8, weight_scale [N], bias [N] -> [M, N] float32."""
    integers = quantized.cpu().long() @ weight.cpu().long().t()  # GPUs have no int64 product
    out = integers.to(quantized.device).float() * weight_scale * act_scale
    return out if bias is None else out + bias
