"""INT8 matmul by int64 arithmetic; for tests."""

from torch import Tensor

from ..quantized_rows import QuantizedRows


def int8_matmul_reference(
    x: QuantizedRows, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x [M, K], weight [N, K] int8, weight_scale [N], bias [N] -> [M, N] float32."""
    device = x.values.device
    integers = x.values.cpu().long() @ weight.cpu().long().t()  # GPUs have no int64 product
    weight_sum = weight.long().sum(dim=1).float() * weight_scale
    out = (integers.to(device).float() * weight_scale - x.zero * weight_sum) * x.scale
    return out if bias is None else out + bias
