"""What the other tests rely on when they run bf16 kernels without a GPU."""

import torch
import triton
import triton.language as tl


@triton.jit
def _multiply_kernel(a, b, out, SIZE: tl.constexpr):
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = rows * SIZE + columns
    x, y = tl.load(a + at), tl.load(b + at)
    total = tl.dot(x, y, tl.zeros((SIZE, SIZE), tl.float32)) + (x * y + 1.0).to(tl.float32)
    tl.store(out + at, total.to(tl.bfloat16))


def test_bf16_is_multiplied_added_and_rounded_as_bf16(device):
    a, b = (torch.randn(16, 16, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    _multiply_kernel[(1,)](a, b, out, SIZE=16)
    expected = ((a.double() @ b.double()) + (a * b + 1.0).double()).bfloat16()
    # One rounding to bf16 apart, where the sums were rounded on the way.
    assert torch.allclose(out.double(), expected.double(), rtol=2**-7, atol=2**-6)
    assert (out == expected).float().mean() > 0.9
